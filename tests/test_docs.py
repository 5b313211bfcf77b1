"""Every public name has an entry in the API reference, with what a caller has to know."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import ifdd
import ifdd.modules
import ifdd_kernels

REFERENCE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
OPS = [name for name in ifdd_kernels.ops.__all__ if inspect.isfunction(getattr(ifdd_kernels, name))]
PUBLIC = [
    pytest.param(module, name, id=f"{module.__name__}.{name}")
    for module in (ifdd_kernels, ifdd, ifdd.modules)
    for name in module.__all__
    if name != "__version__"
]


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_public_names_have_an_entry(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    if inspect.ismodule(value):
        assert f"automodule:: {value.__name__}\n" in REFERENCE
        return
    section = REFERENCE.split(f"\n## {module.__name__}\n")[1].split("\n## ")[0]
    kind = "class" if inspect.isclass(value) else "function"
    assert f".. auto{kind}:: {name}\n" in section
    assert inspect.getdoc(value)


@pytest.mark.parametrize("name", OPS)
def test_ops_state_shapes_dtypes_gradients_and_errors(name: str) -> None:
    text = inspect.getdoc(getattr(ifdd_kernels, name)) or ""
    assert re.search(r"\((B|C|\.\.\.|N|T)[^)]*\)", text), "no shape"
    assert re.search(r"float|dtype", text), "no dtype"
    assert re.search(r"[Gg]radient|differentiable", text), "nothing on gradients"
    assert "Raises:" in text, "no errors"
    assert "Args:" in text
    assert "Returns:" in text
