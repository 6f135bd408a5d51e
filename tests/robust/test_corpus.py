"""Strangers' files through the command's way in and the API's: a valid result, or one sentence that names the file.

A part of the corpus runs in the usual suite, all of it under `make soak`, which prints the table of outcomes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from a2v.ltx.request import PARAMETERS
from a2v.tests.robust.corpus import EITHER, READ, REFUSED, Case, cases
from a2v.tests.robust.harness import Outcome, Worker, table
from a2v.tests.tiny import TinyFiles, write_tiny

LONGEST = 10  # s of CPU time for one case
GROWTH = 64 * 2**20  # bytes over a whole corpus; one leaked file of the larger ones is more
SAMPLE = 40


@cache
def every() -> list[Case]:
    return cases(tuple(PARAMETERS))


def media() -> list[Case]:
    """What fits into a request's body; the long ones are gigabytes."""
    return [case for case in every() if case.field in ("audio", "image") and case.kind != "long"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), layers=1, vae_width=4, gemma_layers=1)


@pytest.fixture
def worker(models: TinyFiles, tmp_path: Path) -> Iterator[Worker]:
    with Worker(models, tmp_path) as worker:
        yield worker


@pytest.fixture(scope="module")
def shared(models: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One process for both samples, whose memory nobody measures."""
    with Worker(models, tmp_path_factory.mktemp("samples")) as worker:
        yield worker


def sample(files: list[Case], count: int, seed: int) -> list[Case]:
    """One of each kind, then others drawn; nothing that takes long."""
    dice = random.Random(seed)
    short = [case for case in files if case.kind != "long"]
    shuffled = dice.sample(short, len(short))
    kinds = list({(case.field, case.kind): case for case in shuffled}.values())
    return kinds + [case for case in shuffled if case not in kinds][: max(0, count - len(kinds))]


def problems(outcomes: Iterable[Outcome], way: str = "command") -> list[str]:
    """What is not as promised, a line each."""
    found = []
    for outcome in outcomes:
        case, text = outcome.case, outcome.text
        # the API is told a field, not a file, and its loaders a name made of the hash; a value is a parameter's
        names = (case.name, *(PARAMETERS if case.field == "request" else ()))
        if way == "api":
            names = (f"{case.field}_url:", *re.findall(r"^[0-9a-f]{32}\.[a-z0-9]+", text))
        if outcome.kind not in (READ, REFUSED):
            wrong = outcome.kind
        elif case.expect not in (EITHER, outcome.kind) and not (way == "api" and case.field == "request"):
            wrong = f"was to be {case.expect}"
        elif outcome.kind == REFUSED and ("\n" in text or not text.endswith((".", "?")) or "Traceback" in text):
            wrong = "is no sentence"
        elif outcome.kind == REFUSED and case.kind != "no request" and not any(name in text for name in names):
            wrong = "does not name the file"
        elif outcome.left:
            wrong = f"left {outcome.left}"
        elif outcome.seconds > LONGEST:
            wrong = f"took {outcome.seconds:.1f} s"
        else:
            continue
        found.append(f"{case.field}, {case.kind}, {case.name}: {wrong}: {text[:300]}")
    return found


def test_the_corpus_is_large_and_each_name_one_case() -> None:
    assert len(every()) >= 1500
    assert len({(case.field, case.name) for case in every()}) == len(every())
    assert sum(case.expect != EITHER for case in every()) >= 500


def test_a_sample_through_the_command(shared: Worker) -> None:
    assert not problems(shared.try_case(case) for case in sample(every(), SAMPLE, 1))


def test_a_sample_through_the_api(shared: Worker) -> None:
    assert not problems((shared.try_case(case, "api") for case in sample(media(), SAMPLE // 2, 2)), "api")


def grown(outcomes: list[Outcome]) -> int:
    """Bytes by which the process grew from the first third of the corpus to the last, by the medians."""
    sizes = [outcome.resident for outcome in outcomes if outcome.resident]
    third = len(sizes) // 3
    first, last = sorted(sizes[:third]), sorted(sizes[-third:])
    return last[third // 2] - first[third // 2]


@pytest.mark.soak
@pytest.mark.parametrize("way", ("command", "api"))
def test_all_of_it(way: str, worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    files = every() if way == "command" else media()
    outcomes = [worker.try_case(case, way) for case in random.Random(3).sample(files, len(files))]
    with capsys.disabled():
        print(f"\n{way}\n{table(outcomes)}\nmemory: {grown(outcomes) / 2**20:+.1f} MB from the first third to the last")
    assert not problems(outcomes, way)
    assert grown(outcomes) < GROWTH
