"""Speech with known times: what espeak-ng and flite say, and when each sound of it begins.

espeak-ng tells its phonemes' times through its library, flite through its command. A phoneme is one of five visemes:
the shapes that a mouth makes of it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..ltx.errors import InputError
from ..ltx.media.audio import load_track

VISEMES = ("closed", "narrow", "wide", "round", "teeth")
CLOSED, NARROW, WIDE, ROUND, TEETH = range(5)
IPA = {CLOSED: "pbmɱ", TEETH: "fvszʃʒθðçɕʑ", ROUND: "oɔuʊwɒyʏøœɵʉɯɥʋ", WIDE: "aɑæɐʌɛɜ"}  # all others: narrow
AFFRICATES = ("ts", "tʃ", "dʒ", "dz", "tɕ", "pf")
ARPABET = {
    CLOSED: "p b m pau",
    TEETH: "f v s z sh zh th dh ch jh",
    ROUND: "ow ao uw uh w oy",
    WIDE: "aa ae ah aw ay eh er",
}


@dataclass(frozen=True)
class Spoken:
    """wave: mono [samples]; sounds: the beginning of each in seconds, and its viseme. The last one lasts to the end."""

    wave: np.ndarray
    rate: int
    sounds: tuple[tuple[float, int], ...]


def synthesizers() -> tuple[str, ...]:
    """Those that are installed."""
    return tuple(name for name in ("espeak-ng", "flite") if shutil.which(name))


def required() -> tuple[str, ...]:
    """Those that are installed. Errors: there is none."""
    if found := synthesizers():
        return found
    raise InputError("speech: neither espeak-ng nor flite is installed; run `apt-get install espeak-ng flite`.")


def of_ipa(name: str) -> int:
    """The viseme of a phoneme that is written in IPA; stress and length do not count, and nothing is closed."""
    letters = re.sub(r"[^\w]|[ˈˌːˑ_]", "", name)
    if not letters:
        return CLOSED
    if letters.startswith(AFFRICATES):
        return TEETH
    return next((v for v, signs in IPA.items() if letters[0] in signs), NARROW)


def of_arpabet(name: str) -> int:
    return next((v for v, names in ARPABET.items() if name in names.split()), NARROW)


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
RETRIEVAL, PHONEMES_IN_IPA, PHONEME, END = 1, 3, 7, 0  # espeak_AUDIO_OUTPUT, options and event types
RATE, PITCH, UTF8 = 1, 3, 1  # espeak_PARAMETER; the encoding of a text


@cache
def _espeak() -> tuple[ctypes.CDLL, int]:
    """The library, and the rate of its samples."""
    name = ctypes.util.find_library("espeak-ng")
    if name is None:
        raise InputError("speech: the library of espeak-ng is missing; run `apt-get install libespeak-ng1`.")
    library = ctypes.CDLL(name)
    rate = library.espeak_Initialize(RETRIEVAL, 0, None, PHONEMES_IN_IPA)
    if rate <= 0:
        raise InputError("speech: espeak-ng finds none of its data; run `apt-get install espeak-ng-data`.")
    return library, rate


def espeak(text: str, voice: str, speed: int, pitch: int) -> Spoken:
    """voice: as `espeak-ng -v` takes it; speed in words a minute; pitch 0 to 99."""
    library, rate = _espeak()
    pieces: list[np.ndarray] = []
    sounds: list[tuple[float, int]] = []

    def take(wave: object, count: int, events: object) -> int:
        if count > 0:
            pieces.append(np.ctypeslib.as_array(wave, (count,)).astype(np.float32) / 32768)
        number = 0
        while events[number].type != END:
            if events[number].type == PHONEME:
                name = events[number].name.decode("utf-8", "ignore")
                sounds.append((events[number].audio_position / 1000, of_ipa(name)))
            number += 1
        return 0

    callback = _CALLBACK(take)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise InputError(f"speech: espeak-ng has no voice {voice}; see `espeak-ng --voices`.")
    library.espeak_SetParameter(RATE, speed, 0)
    library.espeak_SetParameter(PITCH, pitch, 0)
    said = text.encode()
    library.espeak_Synth(said, len(said) + 1, 0, 0, 0, UTF8, None, None)
    library.espeak_Synchronize()
    wave = np.concatenate(pieces) if pieces else np.zeros(1, np.float32)
    return Spoken(wave, rate, tuple(sorted(sounds)))


def flite(text: str, voice: str) -> Spoken:
    """voice: of `flite -lv`."""
    with tempfile.TemporaryDirectory(prefix="mini-") as folder:
        file = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", str(file)]
        told = subprocess.run(command, check=True, capture_output=True, timeout=60, text=True).stdout
        track = load_track(file)
    ends = [(name, float(end)) for name, end in re.findall(r"(\S+):([\d.]+)", told)]
    return Spoken(track.waveform.mean(0).numpy(), track.rate, of_ends(ends))


def of_ends(told: Sequence[tuple[str, float]]) -> tuple[tuple[float, int], ...]:
    """Phonemes with the seconds at which they end, as flite tells them → the beginnings of visemes."""
    begins = (0.0, *(end for _, end in told))
    return tuple((begin, of_arpabet(name)) for begin, (name, _) in zip(begins, told, strict=False))
