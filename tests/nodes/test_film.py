"""Where a graph keeps finished windows: within the settings of the disk, not for ever, and only for one clip."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

from a2v.ltx.diffusion.conditioning import AudioCondition
from a2v.ltx.diffusion.kept import DAYS, ROOM, disk_needed
from a2v.ltx.diffusion.sample_windows import keep_nothing
from a2v.ltx.errors import InputError
from a2v.ltx.latents import Noise
from a2v.ltx.timeline import borders, read_timeline
from a2v.ltx.windows import WindowSize, cut_windows
from a2v.nodes import film, parts
from a2v.nodes.film import FOLDER, Cut, FilmSound, FilmWindows, Timeline, check_clip
from a2v.nodes.taking.noise import NextNoise
from safetensors.torch import save_file

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


def test_windows_that_are_there_need_no_more_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run that ended with a full disk: what it kept is used again, and what other films left makes room."""
    needed, left = disk_needed(FILM.windows, (64, 64)), 1000
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=left))
    with pytest.raises(InputError, match=r"the windows of this film take .* there until it is written"):
        FilmWindows().of([], FILM, (64, 64))
    folder.mkdir()
    (folder / f"{'a' * 64}.safetensors").write_bytes(b"0" * (needed - left))
    assert FilmWindows().of([], FILM, (64, 64)) is not keep_nothing
    (folder / f"{'a' * 64}.safetensors").write_bytes(b"0" * (needed - left - 1))
    with pytest.raises(InputError, match="free; delete files"):
        FilmWindows().of([], FILM, (64, 64))


def test_a_film_that_was_flagged_is_forgotten_and_no_other(folder: Path) -> None:
    folder.mkdir()
    names = {name: folder / f"{name * 64}.safetensors" for name in "abc"}
    part = folder.parent / "part.safetensors"
    for path in (*names.values(), part):
        path.touch()
    film.forget({"samples": None, film.KEPT: (names["a"], names["b"], folder / "gone"), film.MADE: (part,)})
    assert list(folder.parent.iterdir()) == [folder] and list(folder.iterdir()) == [names["c"]]
    film.forget({"samples": None})


@pytest.mark.parametrize(("frames", "fps"), [(73, FPS), (65, Fraction(25))])
def test_what_was_made_for_another_clip_is_refused(frames: int, fps: Fraction) -> None:
    check_clip("windows", FILM, 65, FPS)
    with pytest.raises(InputError, match=rf"^windows: it was made for 65 frames at 24 fps, but here are {frames} at"):
        check_clip("windows", FILM, frames, fps)


# Parts of a film

STORY = "0:00 a woman sings\n0:01 she dances\n0:02 [cut, seed 9] rain\n0:03 [cut] snow"


def story(text: str = STORY, **size: object) -> Cut:
    """A film of four seconds with three parts, of windows 1 to 5, 6 and 7, and 8 and 9."""
    sections, frames, asked = read_timeline(text), 97, WindowSize(17, 1, **size)
    windows = cut_windows(frames, asked, borders(sections, frames, FPS))
    return Cut(frames, FPS, windows, Timeline(sections, (), frames, FPS), asked)


def part(film: Cut, number: int = 0, made: str = "") -> Cut:
    hidden = SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)
    return type("FilmPart", (parts.FilmPart,), {"hidden": hidden}).execute(film, number, 3, made).args[0]


def saved(*kept: Path) -> str:
    """Saves the second part, of which these windows were kept, and returns the file's name."""
    cut = part(story(), 2)
    sounds = tuple(AudioCondition(torch.zeros(1, 8, 18, 16), 17, FPS) for _ in cut.windows)
    hidden = SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)
    save = type("SaveFilmPart", (parts.SaveFilmPart,), {"hidden": hidden})
    latent = {"samples": torch.zeros(1, 128, 13, 1, 1)}
    return save.execute(latent, NextNoise(Noise(1)), FilmSound(cut, sounds, kept), "part").args[0]


@pytest.fixture
def second(folder: Path) -> str:
    """The file of the second part."""
    return saved()


def test_a_part_is_saved_where_a_kept_window_cannot_be_deleted(folder: Path) -> None:
    """A virus scanner may hold it. The part is in its file by then."""
    locked, free = folder / "locked", folder / "free"
    locked.mkdir(parents=True)  # no file, so that unlink fails
    free.touch()
    assert (folder.parent / saved(locked, folder / "gone", free)).is_file() and not free.exists()


def test_a_part_is_taken_where_the_film_changes_elsewhere(second: str) -> None:
    assert [len(part(story(), number).here) for number in (1, 2, 3)] == [5, 2, 2]
    changed = STORY.replace("sings", "hums").replace("[cut] snow", "[cut, image a.png] snow")
    for whole in (story(), story(changed), story(seeds=((1, 5),)), story(anchor=1)):
        assert part(whole, made=second).here == {0, 1, 2, 3, 4, 7, 8}


@pytest.mark.parametrize(
    ("changed", "size"),
    [
        (STORY.replace("rain", "hail"), {}),
        (STORY.replace("seed 9", "seed 8"), {}),
        (STORY.replace("seed 9", "seed 9, image a.png"), {}),
        (STORY, {"seeds": ((6, 5),)}),
        (STORY, {"drift": 0.5}),
        (STORY, {"anchor": 0.0}),
        ("0:00 a woman sings", {}),
    ],
    ids=["words", "seed", "image", "window seed", "drift", "anchor", "windows"],
)
def test_a_part_of_other_sections_is_refused(second: str, changed: str, size: dict[str, float]) -> None:
    """Its windows lie where they lay, but it shows what the timeline no longer says."""
    with pytest.raises(InputError, match=r"^made: part_00001_\.safetensors is a part of another film"):
        part(story(changed, **size), made=second)


def test_a_part_of_another_size_is_refused(second: str, folder: Path) -> None:
    """It would leave a hole in the film. At twice the size of a stage it is that of the next one."""
    cut = part(story(), made=second)
    sounds = tuple(AudioCondition(torch.zeros(1, 8, 18, 16), 17, FPS) for _ in cut.windows)
    for side, size in ((2, "64×64"), (3, "96×96")):
        whole = torch.ones(1, 128, 13, side, side)
        with pytest.raises(InputError, match=rf"^made: part_.* part of 32×32 pixels, but this film has {size}; make"):
            parts.join(cut, whole, sounds, (Noise(1),))
    assert not parts.join(cut, torch.ones(1, 128, 13, 1, 1), sounds, (Noise(1),))[0].all()
    big = folder.parent / "big.safetensors"
    save_file({"video": torch.zeros(1, 128, 4, 2, 2)}, big)
    before = replace(cut, made=(film.Made(big, cut.made[0].numbers),))
    latent = {"samples": parts.join(before, torch.ones(1, 128, 13, 1, 1), sounds, (Noise(1),))[0]}
    parts.check_taken(latent)
    with pytest.raises(InputError, match=r"^made: big\.safetensors is a part of 64×64 pixels"):
        parts.check_taken({**latent, film.MADE: (big,)})
    parts.check_taken({**latent, film.MADE: (folder / "gone.safetensors",)})


@pytest.mark.parametrize("windows", [None, "", "5", "a b", "1 2 3"])
def test_a_file_that_names_no_windows_is_refused(folder: Path, windows: str | None) -> None:
    facts = {"format": parts.FORMAT} | ({} if windows is None else {"windows": windows})
    save_file({"video": torch.zeros(1)}, folder.parent / "odd.safetensors", facts)
    with pytest.raises(InputError, match=r"^made: odd\.safetensors is no part of a film; name files of Save Film Part"):
        part(story(), made="odd.safetensors")


def test_a_part_that_was_taken_up_does_not_map_its_file(tmp_path: Path) -> None:
    """Windows deletes no file that is mapped."""
    path = tmp_path / "part.safetensors"
    save_file({"video": torch.ones(1000)}, path)
    video = parts._read(path)["video"]
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))  # a tensor that maps the file changes with it
    assert video.all()
