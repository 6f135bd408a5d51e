"""The names of kept windows: whatever goes into a window changes its name, in each field."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, Guide, Reference, TextContext
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.kept import DAYS, KeptWindows, described
from a2v.ltx.diffusion.sample_windows import Sampled
from a2v.ltx.diffusion.samplers import Restart
from a2v.ltx.diffusion.speakers import Speaker
from a2v.ltx.diffusion.steering import RES_2S, Steering
from a2v.ltx.errors import InputError
from a2v.ltx.latents import Noise
from a2v.ltx.media.masks import Area
from a2v.ltx.nag import Nag
from torch import Tensor

FPS = Fraction(24)
SOUND = AudioCondition(torch.zeros(1, 8, 9, 16), 9, FPS)
CONDITIONS = Conditions(
    TextContext(torch.zeros(1, 4, 8), torch.zeros(1, 4, 4), 3),
    replace(SOUND, mask=torch.zeros(9), speakers=(Speaker(Area(torch.ones(1, 2, 2)), SOUND.latent),)),
    TextContext(torch.ones(1, 4, 8), torch.zeros(1, 4, 4)),
    (Guide(torch.zeros(1, 128, 1, 1, 1), 0, 1.0),), torch.ones(1, 1, 2, 1, 1), torch.ones(1, 128, 2, 1, 1),
    (Reference(torch.zeros(1, 128, 1, 1, 1), 2, 2, 0.9, 0.5),),
)  # fmt: skip
STEERING = Steering(torch.tensor([1.0, 0.5, 0.0]), Guidance(3, 1, 0.85, 3), restart=Restart(), gamma=1.5, nag=Nag())


def variants(value: Any) -> list[Any]:
    """The value with each of its parts changed alone, at any depth."""
    if isinstance(value, Tensor):
        other = value.clone()
        other.flatten()[-1] += 1e-6 if value.is_floating_point() else 1
        return [other]
    if is_dataclass(value):
        found = []
        for field in fields(value):
            for each in variants(getattr(value, field.name)):
                try:
                    found.append(replace(value, **{field.name: each}))
                except (InputError, ValueError):
                    continue  # nothing that can be sampled
        return found
    if isinstance(value, tuple):
        inside = [(*value[:k], each, *value[k + 1 :]) for k, old in enumerate(value) for each in variants(old)]
        return [*inside, value[:-1]] if value else [(0,)]
    if isinstance(value, (bool, type(None))):
        return [not value]
    if isinstance(value, (int, float, Fraction)):
        return [value - (1 if isinstance(value, int) else Fraction(1, 1000) if isinstance(value, Fraction) else 1e-3)]
    return [RES_2S]


@pytest.mark.parametrize("value", [CONDITIONS, STEERING, Noise(4), Noise(4, torch.zeros(9, dtype=torch.uint8))])
def test_every_part_counts(value: Any) -> None:
    names = [json.dumps(described(each)) for each in (value, *variants(value))]
    assert len(names) > 2 and len(set(names)) == len(names)
    assert json.dumps(described(replace(value))) == names[0]


def test_types_and_shapes_count() -> None:
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(4, dtype=torch.bfloat16)]
    assert len({json.dumps(described(each)) for each in zeros}) == 4
    assert described(torch.ones(2, 3).T) == described(torch.ones(3, 2)), "the values, and not how they lie"


def piece(strength: float) -> tuple[Sampled, Conditions]:
    conditions = replace(CONDITIONS, audio=replace(SOUND, strength=strength))
    audio = replace(SOUND, latent=torch.randn(1, 8, 9, 16))
    first = torch.randn(1, 128, 1, 1, 1)
    return Sampled(torch.randn(1, 128, 2, 1, 1), audio, Noise(4).draw((3,))[1], first), conditions


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_piece_comes_back_to_the_bit(tmp_path: Path, strength: float) -> None:
    made, conditions = piece(strength)
    rest = (0, torch.zeros(1, 128, 2, 1, 1), conditions, STEERING, Noise(4))

    def never() -> Sampled:
        raise AssertionError("it is there")

    def keep(resume: bool, make: Callable[[], Sampled], identity: object = ("a", 1)) -> Sampled:
        store = KeptWindows(tmp_path / "film", resume)
        store.begin(7)
        return store.of(identity)(make, *rest)

    assert keep(False, lambda: made) is made
    back = keep(True, never)
    assert torch.equal(back.video, made.video) and torch.equal(back.noise.state, made.noise.state)
    assert torch.equal(back.audio.latent, made.audio.latent if strength < 1 else SOUND.latent) and back.audio.frozen
    with pytest.raises(AssertionError, match="it is there"):
        keep(True, never, ("a", 2))
    with pytest.raises(AssertionError, match="it is there"):
        keep(False, never)


def test_it_is_removed_and_nothing_else(tmp_path: Path) -> None:
    store = KeptWindows.beside(tmp_path / "film.mp4")
    store.begin(7)
    made, conditions = piece(1.0)
    store.of("")(lambda: made, 0, torch.zeros(1), conditions, STEERING, Noise(4))
    assert (store.count(), store.seed()) == (1, 7)
    (store.folder / "notes.txt").write_text("mine")
    store.remove()
    assert [path.name for path in store.folder.iterdir()] == ["notes.txt"] and store.seed() is None
    (store.folder / "notes.txt").unlink()
    store.remove()
    assert list(tmp_path.iterdir()) == []
    store.remove()


def test_a_folder_that_is_deleted_meanwhile(tmp_path: Path) -> None:
    """By a user, or by another run of the same output that has finished: the film goes on and notes its seed again."""
    store, (made, conditions) = KeptWindows.beside(tmp_path / "film.mp4"), piece(1.0)
    store.begin(7)
    for number in range(3):
        store.of("")(lambda: made, number, torch.zeros(1), conditions, STEERING, Noise(4))
        assert (store.count(), store.seed()) == (1, 7)
        shutil.rmtree(store.folder)


def test_windows_that_another_run_deletes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed, and gone when their size is asked for."""
    store, (made, conditions) = KeptWindows(tmp_path, resume=True), piece(1.0)
    listed = KeptWindows._files
    gone = tmp_path / f"{'a' * 64}.safetensors"
    monkeypatch.setattr(KeptWindows, "_files", lambda self: [gone, *listed(self)])
    store.of("")(lambda: made, 0, torch.zeros(1), conditions, STEERING, Noise(4))
    (file,) = listed(store)
    assert store.spared() == file.stat().st_size


def test_windows_of_other_films_make_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (tmp_path / f"{letter * 64}.safetensors" for letter in "ab")
    for path, age in ((old, 20), (new, 10)):
        path.write_bytes(b"0" * 10**6)
        os.utime(path, (time.time() - age,) * 2)
    room = 2 * 10**6 + 100

    def usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=room - sum(each.stat().st_size for each in folder.iterdir()))

    monkeypatch.setattr("shutil.disk_usage", usage)
    store, (made, conditions) = KeptWindows(tmp_path, resume=True), piece(1.0)
    store.of("")(lambda: made, 0, torch.zeros(1), conditions, STEERING, Noise(4))
    assert not old.exists() and new.exists() and store.count() == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "film.mp4.windows").write_text("a file")
    store, (made, conditions) = KeptWindows.beside(tmp_path / "film.mp4"), piece(1.0)
    store.begin(7)
    with pytest.raises((InputError, OSError), match=r"film\.mp4\.windows"):
        store.of("")(lambda: made, 0, torch.zeros(1), conditions, STEERING, Noise(4))


def test_old_windows_expire_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ages = {f"{'a' * 64}.safetensors": 31, f"{'b' * 64}.safetensors": 29, "lora.safetensors": 400, "seed.json": 400}
    for name, days in ages.items():
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (time.time() - days * 86400,) * 2)
    monkeypatch.setenv(DAYS, "0")  # for ever
    KeptWindows(tmp_path).expire()
    assert {path.name for path in tmp_path.iterdir()} == ages.keys()
    monkeypatch.delenv(DAYS)
    KeptWindows(tmp_path).expire()
    assert {path.name for path in tmp_path.iterdir()} == ages.keys() - {f"{'a' * 64}.safetensors"}
