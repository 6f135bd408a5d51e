"""Writes the translations of the nodes as ComfyUI reads them: `python tests/host/draw_locales.py`.

locales/LANGUAGE/strings.json maps each English text of the nodes to its translation and is written by hand. The
nodeDefs.json and main.json (the menu's categories) beside it are made from it and from the nodes of the running server.
Exit status: 0; 1 if a text has no translation, or the text of a translation is no longer there.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

from a2v.tests.host.comfy import Comfy

LOCALES = ROOT / "locales"
LANGUAGES = ("de", "es", "fr", "ja", "ko", "pt", "zh")
COPIES = {"pt-BR": "pt"}
"""Locales of ComfyUI's frontend that take another one's translation: it knows Portuguese by this name only."""
Json = dict[str, Any]


def english(info: Json) -> Json:
    """Names, descriptions and tooltips of our nodes in the form of nodeDefs.json, out of the server's /object_info."""
    return {kind: _node(node) for kind, node in sorted(info.items()) if kind.startswith("LTXA2V")}


def categories(info: Json) -> Json:
    """The parts of the menu that our nodes are in, below the pack's own name, in the form of main.json."""
    own = {node["category"].partition("/")[2] for kind, node in info.items() if kind.startswith("LTXA2V")}
    return {"nodeCategories": {name: name for name in sorted(own)}}


def _node(node: Json) -> Json:
    inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    options = {name: spec[1] if len(spec) > 1 else {} for name, spec in inputs.items()}
    tooltips = node.get("output_tooltips") or [None] * len(node["output_name"])
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {
            name: _slot(found.get("display_name") or name, found.get("tooltip")) for name, found in options.items()
        },
        "outputs": {
            str(number): _slot(name, tooltip)
            for number, (name, tooltip) in enumerate(zip(node["output_name"], tooltips, strict=True))
        },
    }


def _slot(name: str, tooltip: str | None) -> Json:
    return {"name": name, **({"tooltip": tooltip} if tooltip else {})}


def texts(definitions: Any) -> set[str]:
    """All texts in a nodeDefs.json."""
    if isinstance(definitions, str):
        return {definitions}
    return set().union(*map(texts, definitions.values()))


def translated(definitions: Any, strings: Mapping[str, str]) -> Any:
    """Raises KeyError if a text has no translation."""
    if isinstance(definitions, str):
        return strings[definitions]
    return {key: translated(value, strings) for key, value in definitions.items()}


def strings(language: str) -> dict[str, str]:
    return json.loads((LOCALES / language / "strings.json").read_text(encoding="utf-8"))


def written(info: Json, locale: str) -> dict[str, Json]:
    """The files of a locale by their names."""
    made = {"nodeDefs.json": english(info), "main.json": categories(info)}
    return {name: translated(found, strings(COPIES.get(locale, locale))) for name, found in made.items()}


def main() -> int:
    with tempfile.TemporaryDirectory() as base, Comfy(Path(base)) as server:
        info = server.object_info()
    wanted, wrong = texts(english(info)) | texts(categories(info)), 0
    for language in LANGUAGES:
        have = set(strings(language))
        for kind, found in (("no translation", wanted - have), ("no such text", have - wanted)):
            for text in sorted(found):
                sys.stderr.write(f"locales: {language}: {kind}: {text}\n")
                wrong = 1
    if not wrong:
        for locale in (*LANGUAGES, *COPIES):
            for name, found in written(info, locale).items():
                path = LOCALES / locale / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
