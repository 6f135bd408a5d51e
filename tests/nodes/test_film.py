"""Where a graph keeps finished windows: within the settings of the disk, not for ever, and only for one clip."""

from __future__ import annotations

import os
import time
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

from a2v.ltx.diffusion.kept import DAYS, ROOM
from a2v.ltx.diffusion.sample_windows import keep_nothing
from a2v.ltx.errors import InputError
from a2v.ltx.windows import WindowSize, cut_windows
from a2v.nodes import film
from a2v.nodes.film import FOLDER, Cut, FilmWindows, check_clip

FPS = Fraction(24)
FILM = Cut(65, FPS, cut_windows(65, WindowSize(33, 2)))
CLIP = Cut(33, FPS, cut_windows(33))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(film.folder_paths, "get_output_directory", lambda: str(tmp_path))
    for name in (DAYS, ROOM):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / FOLDER


def test_what_is_old_is_swept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    old, new = (f"{letter * 64}.safetensors" for letter in "ab")  # as windows are named
    for name, days in ((old, 31), (new, 29), ("notes.txt", 400)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - days * 86400,) * 2)
    monkeypatch.setenv(DAYS, "0")
    FilmWindows().of([], FILM, (64, 64))
    assert len(list(folder.iterdir())) == 3, "0 keeps them for ever"
    monkeypatch.delenv(DAYS)
    FilmWindows().of([], CLIP, (64, 64))
    assert len(list(folder.iterdir())) == 3, "a clip has no windows"
    FilmWindows().of([], FILM, (64, 64))
    assert {path.name for path in folder.iterdir()} == {new, "notes.txt"}


def test_the_room_is_a_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOM, "0.00001")
    with pytest.raises(InputError, match=r"^windows: those of this film would take .* LTX_A2V_WINDOWS_GB allows"):
        FilmWindows().of([], FILM, (64, 64))
    assert FilmWindows().of([], CLIP, (64, 64)) is keep_nothing
    monkeypatch.setenv(ROOM, "0")
    assert FilmWindows().of([], FILM, (64, 64)) is keep_nothing and not folder.exists()
    for name in (ROOM, DAYS):
        with monkeypatch.context() as setting, pytest.raises(InputError, match=f"^{name} is 'much': give a number"):
            setting.delenv(ROOM)
            setting.setenv(name, "much")
            FilmWindows().of([], FILM, (64, 64))


@pytest.mark.parametrize(("frames", "fps"), [(73, FPS), (65, Fraction(25))])
def test_what_was_made_for_another_clip_is_refused(frames: int, fps: Fraction) -> None:
    check_clip("windows", FILM, 65, FPS)
    with pytest.raises(InputError, match=rf"^windows: it was made for 65 frames at 24 fps, but here are {frames} at"):
        check_clip("windows", FILM, frames, fps)
