"""`make bench` runs all benchmarks, or the named ones, and writes their results to docs/benchmarks.md.

Exit status: 0 done; 1 if the sides do not compute the same; 2 if a name is unknown or its benchmark cannot run here.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
import types
from pathlib import Path

sys.path.pop(0)  # this folder, because its files are imported only through the alias
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(Path(__file__).resolve().parent.parent)]
sys.modules.setdefault("a2v", alias)

from a2v.benchmarks import measure
from a2v.benchmarks.names import BENCHMARKS, LACKING


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench", description="Runs benchmarks and writes docs/benchmarks.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--small", action="store_true", help="run each once at the smallest size, without the page")
    parser.add_argument("--page", action="store_true", help="only write the page from the saved results")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - BENCHMARKS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    missing = False
    where, begun = measure.machine(), time.monotonic()
    measure.say(f"bench: {where}")
    for name in () if arguments.page else arguments.names or BENCHMARKS:
        measure.say(f"{name}")
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            try:
                module = importlib.import_module(f"a2v.benchmarks.{BENCHMARKS[name]}")
                table = getattr(module, name)(Path(folder), small=arguments.small)
            except (measure.SideError, AssertionError) as error:
                log = Path(folder) / "sides.log"
                sys.stderr.write(log.read_text(errors="replace")[-4000:] if log.is_file() else "")
                sys.stderr.write(f"bench: {name}: {error}\n")
                return 1
        if table is None:
            measure.say(f"  left out: there is no {LACKING[name]} here")
            missing |= name in arguments.names
            continue
        measure.say(table.markdown())
        measure.say(f"  {time.monotonic() - start:.0f} s")
        if not arguments.small:
            measure.save(name, table, where)
    if not arguments.small:
        measure.DOCUMENT.write_text(measure.document(BENCHMARKS), encoding="utf-8")
        measure.say(f"bench: {measure.DOCUMENT} written, {time.monotonic() - begun:.0f} s in all")
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
