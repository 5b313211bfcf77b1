"""Every public name has an entry in the API reference, with what a caller has to know.

Public are the names that a module lists in ``__all__``. The modules of training list nothing: of two of them
everything is public that they define.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, is_typeddict

import pytest

import ifdd
import ifdd.modules
import ifdd_kernels
from ifdd_kernels import reference

PAGES = sorted((Path(__file__).parents[1] / "docs" / "api").glob("*.md"))
ENTRIES = {
    module: set(re.findall(r"^\.\. auto(?:function|class|exception|data):: (\w+)$", section, re.MULTILINE))
    for page in PAGES
    for module, section in re.findall(r"^## ([\w.]+)\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S)
}
# Ops are documented as names of ifdd_kernels; commands and Triton's device code are not called from Python.
LEFT_OUT = ("ifdd_kernels.ops", "ifdd_kernels.triton", "ifdd.cli")
WITHOUT_LIST = ("ifdd.training.config", "ifdd.training.run")


def public_modules() -> Iterator[ModuleType]:
    for package in (ifdd_kernels, ifdd):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.startswith(LEFT_OUT) and "._" not in found.name:
                yield importlib.import_module(found.name)


def public_names(module: ModuleType) -> list[str]:
    if module.__name__ in WITHOUT_LIST:
        own = (
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) or inspect.isfunction(value)
        )
        return [
            name for name in own if name[0] != "_" and getattr(module, name).__module__ == module.__name__
        ]
    listed = getattr(module, "__all__", ())
    return [name for name in listed if name != "__version__" and not inspect.ismodule(getattr(module, name))]


PUBLIC = {module: names for module in public_modules() if (names := public_names(module))}
CALLABLES = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module, names in PUBLIC.items()
    if module is not reference
    for name in names
    if inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name))
}
OPS = [name for name in ifdd_kernels.ops.__all__ if inspect.isfunction(getattr(ifdd_kernels, name))]
SHAPE = re.compile(r"\((B|C|K|T|N|M|S|\.\.\.|\d|out)[^)]*\)")


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_public_names_have_an_entry(module: ModuleType) -> None:
    assert set(PUBLIC[module]) == ENTRIES.get(module.__name__), "names of the module, entries in docs/api"


def test_there_are_names() -> None:
    assert len(CALLABLES) > 100
    assert {"ifdd", "ifdd.modules", "ifdd.checkpoint", "ifdd_kernels.backends"} <= {
        m.__name__ for m in PUBLIC
    }


def raises(value: Any) -> bool:
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


def parameters(value: Any) -> list[str]:
    if is_typeddict(value):
        return list(value.__annotations__)
    every = inspect.signature(value).parameters.values()
    return [p.name for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def described(name: str, text: str) -> bool:
    """As an argument or an attribute, in the text in backquotes, or by a comment or a string at the field."""
    listed = rf"^\s*(?:[\w, ]+, )?{name}(?:, [\w, ]+)?:"
    field = rf"^ +#:.*\n +{name}: |^ +{name}: [^\n]*\n +\"\"\""
    return bool(re.search(rf"{listed}|``?{name}``?|{field}", text, re.MULTILINE))


def lacks(value: Any) -> list[str]:
    """The gaps in the docstring of a function or a class."""
    text = inspect.getdoc(value) or ""
    if not text:
        return ["a docstring"]
    if inspect.isfunction(value):
        needed = {"Raises:": raises(value), "Returns:": returns(value) and len(parameters(value)) > 1}
        if "Tensor" in str(inspect.signature(value)):
            needed |= {
                "a shape": not SHAPE.search(text),
                "a dtype": not re.search(r"float|dtype|integer", text),
            }
        arguments = [name for name in parameters(value) if not described(name, text)]
    elif issubclass(value, BaseException):
        return []
    else:
        generated = dataclasses.is_dataclass(value) or getattr(value, "_is_protocol", False)
        constructor = None if generated else vars(value).get("__init__")
        needed = {"Raises:": inspect.isfunction(constructor) and raises(constructor)}
        if hasattr(value, "forward"):
            needed["a shape"] = not SHAPE.search(text + (inspect.getdoc(value.forward) or ""))
        # Objects that only the library makes are described by their attributes.
        made_here = re.search(r"made by `", text)
        source = text + inspect.getsource(value)
        arguments = [] if made_here else [n for n in parameters(value) if not described(n, source)]
        methods = {n: m for n, m in vars(value).items() if n[0] != "_" and inspect.isfunction(m)}
        for name, method in methods.items():
            needed[f"a docstring of {name}"] = not method.__doc__
            needed[f"Raises: in {name}"] = raises(method) and "Raises:" not in (method.__doc__ or "")
    missing = [what for what, absent in needed.items() if absent and what not in text]
    return missing + arguments


def returns(function: Any) -> bool:
    return str(inspect.signature(function).return_annotation) not in ("None", "NoReturn")


@pytest.mark.parametrize("name", CALLABLES)
def test_entries_say_arguments_results_shapes_dtypes_and_errors(name: str) -> None:
    assert not lacks(CALLABLES[name])


def test_a_poor_docstring_is_noticed() -> None:
    def poor(x: ifdd.IFDDOutput, size: int) -> int:
        """Doubles."""
        if size < 0:
            raise ValueError(size)
        return 2 * size

    assert lacks(poor) == ["Raises:", "Returns:", "x", "size"]


@pytest.mark.parametrize("name", OPS)
def test_ops_state_shapes_dtypes_gradients_and_errors(name: str) -> None:
    text = inspect.getdoc(getattr(ifdd_kernels, name)) or ""
    assert SHAPE.search(text), "no shape"
    assert re.search(r"float|dtype", text), "no dtype"
    assert re.search(r"[Gg]radient|differentiable", text), "nothing on gradients"
    assert "Raises:" in text, "no errors"
    assert "Args:" in text
    assert "Returns:" in text


@pytest.mark.parametrize("name", reference.__all__)
def test_definitions_are_those_of_documented_ops(name: str) -> None:
    """Arguments, shapes, dtypes and errors are the op's; the definition has the formula."""
    assert inspect.getdoc(getattr(reference, name))
    assert name.removesuffix("_backward") in OPS or name in ("attention_of_parts", "augment_pixels")
