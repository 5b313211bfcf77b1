"""No module imports one that imports it, not even inside a function or for the type checker alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import benchmarks
import ifdd
import ifdd_kernels

Graph = Mapping[str, set[str]]


def modules(*packages: Path) -> dict[str, Path]:
    """Files by the names of their modules."""
    found = {}
    for package in packages:
        for file in package.rglob("*.py"):
            parts = file.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name: str, file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Known modules that a file imports anywhere."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                child = f"{origin}.{alias.name}"
                if child in known:
                    yield child
                elif origin in known:
                    yield origin


def circle(graph: Graph) -> list[str]:
    """Modules along a circle, the first one again at the end; empty without one."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            found = visit(other, [*way, name])
            if found:
                return found
        done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in sorted(graph))), [])


def graph_of(*packages: Path) -> dict[str, set[str]]:
    known = modules(*packages)
    return {name: set(imported(name, file, known)) - {name} for name, file in known.items()}


def test_no_circles() -> None:
    packages = (Path(str(package.__file__)).parent for package in (ifdd, ifdd_kernels, benchmarks))
    graph = graph_of(*packages)
    assert len(graph) > 140
    assert "ifdd_kernels._operator" in graph["ifdd_kernels.registry"]
    assert " -> ".join(circle(graph)) == ""


def folders(graph: Graph) -> dict[str, set[str]]:
    """The same between the folders directly below a package."""
    found: dict[str, set[str]] = {}
    for name, others in graph.items():
        folder, *seen = (".".join(one.split(".")[:2]) for one in (name, *others))
        found.setdefault(folder, set()).update(set(seen) - {folder})
    return found


def test_folders_of_the_benchmarks_have_no_circle() -> None:
    graph = folders(graph_of(Path(str(benchmarks.__file__)).parent))
    assert graph["benchmarks.report"] == {"benchmarks.suite"}
    assert graph["benchmarks.suite"] == {"benchmarks.rivals", "benchmarks.original"}
    assert " -> ".join(circle(graph)) == ""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("from pack.b import f", "from pack.a import g"),
        ("from pack import b", "from .a import g"),
        ("import pack.b", "def late():\n    from pack.a import g"),
        ("from . import b", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack import a"),
    ],
)
def test_circles_are_found(tmp_path: Path, first: str, second: str) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text(first)
    (package / "b.py").write_text("import os")
    assert circle(graph_of(package)) == []
    (package / "b.py").write_text(second)
    assert circle(graph_of(package)) == ["pack.a", "pack.b", "pack.a"]
