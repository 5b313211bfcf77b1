"""The code and the links of docs/mvitv2.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from torchvision_mvit import import_video

PAGE = (Path(__file__).parents[2] / "docs" / "mvitv2.md").read_text()
CODE = re.search(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    import_video()
    assert CODE is not None
    names: dict[str, Any] = {}
    exec(compile(CODE[1], "docs/mvitv2.md", "exec"), names)
    assert "blocks.15.attn" in capsys.readouterr().out
    assert len(names["report"].replaced) == 35
    assert names["report"].left == {}
    assert "Accelerated" not in str(names["model"])


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^):]+)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / target).exists()
