"""Tools that all benchmarks share: sides in their own processes, ratios with their spread, and the table of results.

It measures nothing by itself. It does not import the engine, because a side's memory is that of its own process.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import operator
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # the widest first: torch's own kernels differ by it
PACKAGES = ("torch", "diffusers", "transformers", "av", "ltx-core", "ltx-pipelines")


def threads() -> int:
    """Number of threads of each side: BENCH_THREADS, by default one per core."""
    return int(os.environ.get("BENCH_THREADS") or os.cpu_count() or 1)


MISSING = "—"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def resident(field: str) -> int:
    """Resident memory in bytes. field: VmRSS for now, or VmHWM for the peak since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"the system does not report {field}")


class SideError(RuntimeError):
    """A side's process failed. The text says why."""


class Side:
    """A process that runs functions of one module of this folder, one at a time. It is a context manager.

    `side("step", frames=9)` returns the function's result, a dict, and adds "seconds" (wall time of the call), "peak"
    and "grown" (bytes of resident memory at the call's peak and after it, both without the memory of the imports).
    """

    def __init__(self, module: str, log: Path | None = None) -> None:
        self.module = module
        self._log = (log or Path(os.devnull)).open("ab")
        env = dict(os.environ)
        env |= {"OMP_NUM_THREADS": str(threads()), "MKL_NUM_THREADS": str(threads()), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(ROOT / "benchmarks" / "child.py"), module]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=env, text=True
        )

    def __call__(self, function: str, **arguments: Any) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps([function, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SideError(f"{self.module}.{function}: its process ended with status {self._process.wait()}.")
        answer = json.loads(line)
        if "error" in answer:
            raise SideError(f"{self.module}.{function}: {answer['error']}")
        return answer

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


@contextmanager
def sides(*modules: str, log: Path | None = None) -> Iterator[list[Side]]:
    """Starts a new process for each module."""
    with ExitStack() as stack:
        yield [stack.enter_context(Side(module, log)) for module in modules]


@dataclass(frozen=True)
class Ratio:
    """The ratio ours / other of runs in turns, pair by pair."""

    ours: Sequence[float]
    other: Sequence[float]

    @property
    def pairs(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.other, strict=True)]

    @property
    def median(self) -> float:
        return statistics.median(self.pairs)

    def __str__(self) -> str:
        return middle(self.pairs)


def middle(values: Sequence[float], digits: int = 2, factor: float = 1.0) -> str:
    """The median, followed by the extremes if they differ."""
    shown = [f"{v * factor:.{digits}f}" for v in (statistics.median(values), min(values), max(values))]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]}–{shown[2]})"


@dataclass(frozen=True)
class Table:
    """A benchmark's result. numbers: figures of the table by name, for programs."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.title}: a row does not have {len(self.columns)} cells")

    def judged(self, found: Iterable[Sequence[float]]) -> Table:
        """The table with a column `kept` behind `wanted`. found: the values of each row for which something is wanted,
        in the unit of its bound and in the order of the rows; all values of a row have to be within it."""
        at, given = self.columns.index("wanted"), iter(found)
        cells = [MISSING if row[at] in ("", MISSING) else kept(next(given), row[at]) for row in self.rows]
        if next(given, None) is not None:
            raise ValueError(f"{self.title}: there are more figures than wanted ones")
        rows = [(*row[: at + 1], cell, *row[at + 1 :]) for row, cell in zip(self.rows, cells, strict=True)]
        return replace(self, columns=(*self.columns[: at + 1], "kept", *self.columns[at + 1 :]), rows=tuple(rows))

    def markdown(self) -> str:
        lines = [" | ".join(self.columns), " | ".join(["---"] + ["---:"] * (len(self.columns) - 1))]
        lines += [" | ".join(row) for row in self.rows]
        return "\n".join([f"| {line} |" for line in lines] + [""] + [f"{note}" for note in self.notes])


def kept(values: Sequence[float], wanted: str) -> str:
    """Whether all values are within a bound like `≤ 0.80`, `< 2 %` or `0`."""
    sign, bound = re.match(r"([≤≥<]?) ?(-?[\d.]+(?:e-?\d+)?)", wanted).groups()
    meets = {"≤": operator.le, "≥": operator.ge, "<": operator.lt, "": operator.eq}[sign]
    return "yes" if all(meets(value, float(bound)) for value in values) else "no"


def machine() -> str:
    """The processor with its vector instructions, the memory, the system and the versions, on one line."""
    name, vectors = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line.partition(":")[::2] for line in info.read_text().splitlines()]
        facts = {key.strip(): value.strip() for key, value in reversed(lines)}  # of the first core
        name, flags = facts.get("model name", name), facts.get("flags", "").split()
        vectors = next((f" with {vector}" for flag, vector in VECTORS.items() if flag in flags), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES if version(package))
    return (
        f"{name}{vectors}, {os.cpu_count()} cores, {memory:.0f} GiB; {threads()} threads; "
        f"Python {platform.python_version()}, {versions}"
    )


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def save(name: str, table: Table, where: str, folder: Path = RESULTS) -> Path:
    """Saves the table with the date and the machine, for `document`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {**asdict(table), "date": datetime.date.today().isoformat(), "machine": where}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> tuple[Table, str, str]:
    """A saved table, its date and its machine."""
    content = json.loads(path.read_text(encoding="utf-8"))
    date, where = content.pop("date"), content.pop("machine")
    rows = tuple(tuple(row) for row in content.pop("rows"))
    return Table(rows=rows, **{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}), date, where


INTRODUCTION = """\
# Benchmarks

`make bench` measures these figures and writes this page; `make bench ARGS="peer encode"` measures some of them.
Nothing is downloaded, because the models have random weights. The two sides run in turns (A B A B …), each in its own
process, with the same number of threads. A ratio of times or of memory is the median over pairs of runs, with the
extremes in brackets; below 1, this pack is faster or smaller. Where a column says speed or speed-up, more is faster.
Memory is the peak of resident memory without the memory of the imports. `kept` says whether a figure is as wanted. Each
table says whether it is measured, or counted without a GPU.
"""


def document(names: Sequence[str], folder: Path = RESULTS) -> str:
    """The page of all saved tables, in the order of `names`."""
    parts = [INTRODUCTION]
    for name in names:
        path = folder / f"{name}.json"
        if path.is_file():
            table, date, where = load(path)
            parts.append(f"## {table.title}\n\n{date}; {where}.\n\n{table.markdown().rstrip()}\n")
    return "\n".join(parts)
