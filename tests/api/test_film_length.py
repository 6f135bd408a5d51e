"""How long a film in windows may be is an administrator's setting."""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from a2v.api.applications.audio_to_video import AUDIO_TO_VIDEO, DISTILLED
from a2v.api.settings import Settings
from a2v.ltx.errors import InputError

SECONDS = 12


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "3f9c.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 8000 * SECONDS))
    return path


def settle(settings: Settings, path: Path, minutes: float, **asked: Any) -> Any:
    checked = DISTILLED.check({"prompt": "x", "audio_url": "https://host/a.wav", **asked})
    return DISTILLED.settle(checked, {"audio_url": path}, replace(settings, max_minutes=minutes))


@pytest.mark.parametrize("asked", [{"windows": True}, {"timeline": "0:00 a"}])
def test_a_longer_sound_is_refused(settings: Settings, sound: Path, asked: dict[str, Any]) -> None:
    assert settle(settings, sound, 0.2, **asked).request.windows is not None
    with pytest.raises(InputError) as refused:
        settle(settings, sound, 0.1, **asked)
    assert str(refused.value) == (
        "audio_url: the sound lasts 0.2 minutes, and this server makes films of up to 0.1; cut it into shorter parts."
    )


def test_the_limit_is_for_films_alone(settings: Settings, sound: Path) -> None:
    settle(settings, sound, 0.1)
    settle(settings, sound, 0.1, windows=True, match_audio_length=False)
    assert AUDIO_TO_VIDEO.settle is DISTILLED.settle


def test_a_file_without_sound_is_told_by_its_input(settings: Settings, tmp_path: Path) -> None:
    broken = tmp_path / "77aa.wav"
    broken.write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"^audio_url: cannot be read"):
        settle(settings, broken, 1, windows=True)
