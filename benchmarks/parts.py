"""The finished parts of a long benchmark, kept in a file, so that a run that was cut goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from a2v.benchmarks.measure import ROOT, say

Result = dict[str, Any]


class Parts:
    """Measured parts by their names. A file of another identity is not gone on with: its figures mean something else.

    path: where they are kept; after each part the file is whole. identity: card, versions, job and code. also: further
    files that get the same content, for instance in a folder that outlives the machine.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], also: tuple[Path, ...] = ()) -> None:
        self.paths, self.identity = (path, *also), json.loads(json.dumps(identity))
        self.found: dict[str, Result] = {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(content, dict) and content.get("identity") == self.identity:
            self.found = content["parts"]
            say(f"  {len(self.found)} parts are there already, from {path}")

    def get(self, name: str, measure: Callable[[], Result]) -> Result:
        """The kept part of that name, else what `measure` finds, which is kept before it is returned."""
        if name not in self.found:
            say(f"  {name}")
            self.found[name] = measure()
            self._write()
        return self.found[name]

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def done(self) -> None:
        """Removes the files: the table has the figures now."""
        for path in self.paths:
            path.unlink(missing_ok=True)

    def _write(self) -> None:
        content = json.dumps({"identity": self.identity, "parts": self.found}, indent=1)
        for path in self.paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.part")
            temporary.write_text(content + "\n", encoding="utf-8")
            os.replace(temporary, path)


def code(*places: str) -> str:
    """A hash of these Python files of the repository, and of those in these folders: another state of the code begins
    anew."""
    digest = hashlib.sha256()
    for place in places:
        for file in [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py")):
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
