"""The house: no circle among files or rooms, functions of a readable size, one class per name."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST, MOST_PARAMETERS = 60, 10
REASON = "# long: "
"""Begins the comment, above a function, that says why it is longer or takes more."""


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imported(file: Path) -> Iterator[Path]:
    """The files of the pack that a file imports, also within functions; not what it names for type checkers alone."""
    package = file.relative_to(ROOT).parts[:-1]
    tree = parsed(file)
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or id(node) in for_types:
            continue
        base = ROOT.joinpath(*package[: len(package) - node.level + 1], *(node.module or "").split("."))
        for alias in node.names:
            places = base / f"{alias.name}.py", base.with_suffix(".py"), base / "__init__.py"
            yield next(place for place in places if place.exists())


def room(file: Path) -> Path:
    """The folder of a file, two names deep; a file that lies in ltx/ itself is a room of its own."""
    inside = file.relative_to(ROOT)
    return Path(*inside.parts[:2]) if len(inside.parts) > 2 else inside


def circle(arrows: Mapping[Path, set[Path]]) -> list[Path]:
    """A circle among these, empty where there is none."""
    done: set[Path] = set()
    path: list[Path] = []

    def visit(place: Path) -> list[Path]:
        if place in path:
            return [*path[path.index(place) :], place]
        if place in done:
            return []
        path.append(place)
        found = next(filter(None, map(visit, sorted(arrows.get(place, ())))), [])
        path.pop()
        done.add(place)
        return found

    return next(filter(None, map(visit, sorted(arrows))), [])


@pytest.mark.parametrize("folder", ["ltx", "nodes", "api"])
def test_no_circle_among_files(folder: str) -> None:
    assert circle({file: set(imported(file)) - {file} for file in files(folder)}) == []


def test_no_circle_among_rooms() -> None:
    arrows: dict[Path, set[Path]] = defaultdict(set)
    for file in files("ltx"):
        arrows[room(file)] |= {room(other) for other in imported(file) if other.name != "__init__.py"} - {room(file)}
    assert len(arrows) > 12 and circle(arrows) == []


def test_the_page_of_rooms_lists_every_file() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^## The engine's rooms\n.*?```\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    words = [word for word in block.split() if not word.endswith("/") and word != "·"]
    assert sorted(words) == sorted(file.stem for file in files("ltx") if file.stem != "__init__")


def test_the_walks_name_files_that_exist() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:\w+/)*\w+(?:\.py|/))`", page))
    tops = [path for path in ROOT.iterdir() if not path.name.startswith(".")]  # not .venv, which has many thousands
    every = [*tops, *(path for top in tops for path in top.rglob("*"))]
    there = {str(path.relative_to(ROOT)) + "/" * path.is_dir() for path in every if not path.name.startswith(".")}
    assert len(names) > 20
    assert [name for name in names if not any(f"/{path}".endswith(f"/{name}") for path in there)] == []


def test_sources_name_files_that_exist() -> None:
    """In docstrings and comments, too, which no import checks."""
    rooms = ("ltx", "nodes", "api", "mini", "benchmarks", "tests")
    named = re.compile(rf"\b(?:{'|'.join(rooms)})(?:/\w+)+\.py\b")
    found = {(file, name) for room in rooms for file in files(room) for name in named.findall(file.read_text())}
    assert len(found) > 50
    assert [(str(file.relative_to(ROOT)), name) for file, name in found if not (ROOT / name).exists()] == []


def test_a_circle_is_found() -> None:
    a, b, c = map(Path, "abc")
    assert circle({a: {b}, b: {c}, c: {b}}) == [b, c, b] and circle({a: {b, c}, b: {c}}) == []


def functions(folder: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, list[str]]]:
    """(file:line, function, lines of the file)."""
    for file in files(folder):
        text = file.read_text()
        for node in ast.walk(parsed(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node, text.splitlines()


def test_functions_of_the_engine_have_a_readable_size() -> None:
    found = []
    for where, node, lines in functions("ltx"):
        first = min((d.lineno for d in node.decorator_list), default=node.lineno)
        named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        parameters = len([each for each in named if each.arg not in ("self", "cls")])
        large = node.end_lineno - node.lineno + 1 > LONGEST or parameters > MOST_PARAMETERS
        if large and REASON not in lines[first - 2]:
            found.append(f"{where}: {node.end_lineno - node.lineno + 1} lines, {parameters} parameters")
    assert found == []


def test_one_class_for_a_name() -> None:
    names = Counter(
        node.name
        for folder in ("ltx", "nodes", "api")
        for file in files(folder)
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []
