"""`python -m ifdd`."""

from __future__ import annotations

import sys

from ifdd.cli import main

sys.exit(main())
