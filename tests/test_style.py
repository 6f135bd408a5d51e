"""Rules of the house that a reader cannot see at one glance: dependencies point down, and what no file may contain."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# lines of ComfyUI's own requirements.txt, there without the pack asking for them
HOST_PACKAGES = {"torch", "numpy", "PIL", "scipy", "tqdm", "tokenizers", "pydantic", "sqlalchemy", "yarl", "yaml"}
HOST_PACKAGES |= {"alembic"}
HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview"}
HOST_MODULES |= {"nodes", "node_helpers", "server", "aiohttp"}
EXTRAS = {"ray", "pillow_heif"}  # optional dependencies of pyproject.toml
FASTER = {"comfy_kitchen", "natten", "triton"}  # used where somebody has installed its kernels


def sources(*folders: str) -> list[Path]:
    found = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return [*found, *([ROOT / "__init__.py"] if (ROOT / "__init__.py").is_file() else [])]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of each import, also those within functions; relative ones as a path from the repository's root,
    with a leading dot: `.ltx.media`. One that leaves the repository is `..`."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.ImportFrom):
            up = len(package) - (node.level - 1)
            if up < 0:
                yield node.lineno, ".."
                continue
            base = [*package[:up], *(node.module.split(".") if node.module else [])]
            # `from .. import ltx` names a folder in the alias, `from .audio import x` in the module
            names = [[*base, alias.name] for alias in node.names] if not node.module else [base]
            yield from ((node.lineno, "." + ".".join(name)) for name in names)


def offences(folder: str, forbidden: set[str]) -> list[str]:
    """file:line of imports below `folder` whose first name (".nodes" for a folder of the pack) is in `forbidden`."""
    found = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        for line, module in imports(file):
            first = "." + module[1:].split(".")[0] if module.startswith(".") else module.split(".")[0]
            if first in forbidden:
                found.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    return found


def test_the_engine_knows_neither_comfyui_nor_the_nodes() -> None:
    pack = {"." + name for name in ("nodes", "api", "tests", "benchmarks", ".")}
    assert offences("ltx", HOST_MODULES | pack) == []


def test_the_nodes_know_the_engine_and_nothing_above_themselves() -> None:
    assert offences("nodes", {".api", ".tests", ".benchmarks", ".."}) == []


def test_the_pack_is_imported_relatively_never_by_a_top_level_name() -> None:
    # custom_nodes/ is on no path of Python's: `import ltx` would find another pack's, or nothing
    assert offences("ltx", {"ltx", "a2v"}) + offences("nodes", {"ltx", "a2v"}) == []


def test_every_package_imported_is_asked_for_or_brought_by_the_host() -> None:
    asked = {line.split(">=")[0] for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalpha()}
    known = asked | EXTRAS | FASTER | HOST_PACKAGES | HOST_MODULES | set(sys.stdlib_module_names)
    used = {
        (module.split(".")[0], str(file.relative_to(ROOT)))
        for file in sources("ltx", "nodes", "api")
        for _, module in imports(file)
        if not module.startswith(".")
    }
    assert {(module, file) for module, file in used if module not in known} == set()
    assert asked <= {module for module, _ in used}, "a requirement that nothing imports"


@pytest.mark.parametrize("file", sources("ltx", "nodes", "api"), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_source_file_says_what_it_is_and_hides_no_error(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "no header"
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not calls & {"eval", "exec", *({"print"} if file.name not in {"__main__.py", "headless.py"} else ())}
    assert not any(isinstance(n, ast.ExceptHandler) and n.type is None for n in ast.walk(tree)), "a bare except"
    assert not any(module.split(".")[0] in {"pickle", "subprocess"} for _, module in imports(file))


def test_ruff_is_clean() -> None:
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run([ruff, "check", "--no-cache", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
