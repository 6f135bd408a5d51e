"""The rooms of api/ stand in one order, and no file imports in a circle, not even within a room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    *("settings", "clock", "faults", "waiting"),
    *("database", "ticking", "network", "files", "graph", "applications", "host", "webhooks", "queue"),
    *("protocol", "cluster", "install"),
)
"""From the bottom up: a room imports itself and those before it. A file at the top of api/ is a room of its own."""


def modules() -> dict[str, Path]:
    """Dotted name below api/ → file; a package by its own name."""
    found = {}
    for path in sorted((ROOT / "api").rglob("*.py")):
        parts = path.relative_to(ROOT / "api").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """Modules of api/ that a module imports when it is imported itself, not those within its functions."""
    path = MODULES[name]
    package = list(path.relative_to(ROOT).parent.parts)
    nodes = list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            if base[:1] == ["api"]:
                inside = ".".join(base[1:])
                yield from {
                    sub if (sub := f"{inside}.{alias.name}".strip(".")) in MODULES else inside for alias in node.names
                }
        nodes += ast.iter_child_nodes(node)


def test_no_file_imports_in_a_circle() -> None:
    graph = {name: {other for other in imported(name) if other != name} for name in MODULES}
    assert sum(map(len, graph.values())) > 100, "the imports are found"
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_rooms_import_those_below_them() -> None:
    assert {name.split(".")[0] for name in MODULES if name} == set(ROOMS)
    for name in MODULES:
        room = name.split(".")[0]
        if room:
            above = ROOMS[ROOMS.index(room) + 1 :]
            assert not [other for other in imported(name) if other.split(".")[0] in above], name
