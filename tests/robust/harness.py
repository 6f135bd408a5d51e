"""Drives worker.py: a case that crashes or hangs the process is an outcome like any other, and the next one gets a new
process."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from a2v.tests.robust.corpus import Case
from a2v.tests.tiny import TinyFiles

HANG = 200  # s on the clock, of a busy machine; what a case may take is judged by CPU time

START = 280  # s, for the imports


@dataclass(frozen=True)
class Outcome:
    """kind: read, refused, broken (another exception), crashed or hung. resident: bytes after it, 0 where it died."""

    case: Case
    kind: str
    text: str
    seconds: float
    resident: int
    left: tuple[str, ...]  # files beside the case's own


class Worker:
    """A context manager; the process starts with the first case."""

    def __init__(self, models: TinyFiles, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.models = json.dumps({
            "checkpoint": str(models.checkpoint), "text_encoder": str(models.gemma), "upscaler": str(models.upscaler),
            "unused_camera": str(models.camera_lora), "audio": str(_good_sound(folder)),
        })  # fmt: skip
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def try_case(self, case: Case, way: str = "command") -> Outcome:
        """The case's file is made, tried and removed."""
        inside = self.folder / "case"
        inside.mkdir(exist_ok=True)
        path = case.write(inside)
        before = self._files()
        if self.process is None:
            self._start()
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"way": way, "field": case.field, "path": str(path)}) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.lines.get(timeout=HANG))
        except queue.Empty:
            answer = {"outcome": "hung", "text": f"no answer in {HANG} s", "seconds": HANG, "resident": 0}
            self._stop()
        except (BrokenPipeError, ValueError):  # the end of the process ends the lines with one that is empty
            code = self.process.wait()
            answer = {"outcome": "crashed", "text": f"status {code}", "seconds": 0, "resident": 0}
            self._stop()
        finally:
            left = tuple(sorted(self._files() - before))
            path.unlink(missing_ok=True)
        return Outcome(case, answer["outcome"], answer["text"], answer["seconds"], answer["resident"], left)

    def _files(self) -> set[str]:
        """What lies beside the case and in the folder for temporary files; the API's database is its own."""
        found = [*(self.folder / "case").rglob("*"), *self.temporary.rglob("*")]
        return {path.name for path in found if path.is_file() and not path.name.startswith("requests.sqlite")}

    def _start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary), "MALLOC_MMAP_THRESHOLD_": "65536"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), self.models],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_copy, args=(self.process.stdout, self.lines), daemon=True).start()
        assert self.lines.get(timeout=START) == "ready\n"

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _copy(stream: Iterable[str], lines: queue.SimpleQueue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _good_sound(folder: Path) -> Path:
    from a2v.tests.robust.corpus import wav

    path = folder / "good.wav"
    path.write_bytes(wav())
    return path


def table(outcomes: Iterable[Outcome]) -> str:
    """Cases by what they are and what came of them, and the longest."""
    outcomes = list(outcomes)
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        counts.setdefault(f"{outcome.case.field}: {outcome.case.kind}", Counter())[outcome.kind] += 1
    kinds = ("read", "refused", "broken", "crashed", "hung")
    lines = [f"{'case':<32}" + "".join(f"{kind:>9}" for kind in kinds)]
    lines += [f"{name:<32}" + "".join(f"{row[kind]:>9}" for kind in kinds) for name, row in counts.items()]
    total = Counter(outcome.kind for outcome in outcomes)
    lines.append(f"{f'all {len(outcomes)}':<32}" + "".join(f"{total[kind]:>9}" for kind in kinds))
    longest = max(outcomes, key=lambda outcome: outcome.seconds)
    lines.append(f"longest: {longest.case.name}, {longest.seconds:.1f} s of CPU time")
    return "\n".join(lines)
