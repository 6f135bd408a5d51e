"""A coverage-guided fuzzer on what reads strangers' bytes: sound, images, weights' headers, requests. Not a test.

    pip install --target FOLDER atheris==3.0.0      (Python 3.11 to 3.13, Linux; it is no requirement of the tests)
    PYTHONPATH=FOLDER python tests/robust/fuzz.py TARGET CORPUS -max_total_time=300 -rss_limit_mb=8000

TARGET: audio, image, lora, gguf or request. CORPUS: a folder, filled with seeds from corpus.py where it is empty.
Anything but a result or an `InputError` ends it with the input in a file crash-…
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import atheris

alias = types.ModuleType("a2v")
alias.__path__ = [str(Path(__file__).resolve().parents[2])]
sys.modules["a2v"] = alias

import av  # noqa: E402
import torch  # noqa: E402

with atheris.instrument_imports(include=["a2v.ltx", "gguf"]):
    from a2v.ltx.media.audio import load_track
    from a2v.ltx.media.images import load_image
    from a2v.ltx.request import PARAMETERS, parse
    from a2v.ltx.weights.files import WeightFile
    from a2v.ltx.weights.gguf import GgufFile
    from a2v.ltx.weights.lora import load_lora

from a2v.ltx.arguments import read_request  # noqa: E402
from a2v.ltx.errors import InputError  # noqa: E402
from a2v.tests.robust.corpus import cases  # noqa: E402


def _sound(path: Path) -> None:
    assert load_track(path, duration=2).waveform.isfinite().all()


def _image(path: Path) -> None:
    assert load_image(path).shape[2] == 3


def _weights(path: Path) -> None:
    file = WeightFile(path, "the file")
    for name in file.names:
        file.shape(name)
    _ = file.config
    load_lora(path)


def _gguf(path: Path) -> None:
    file = GgufFile(path)
    for name in file.keys():  # noqa: SIM118
        file.get(name)


def _request(path: Path) -> None:
    parse(read_request(path))


TARGETS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "audio": (_sound, "audio", ""),
    "image": (_image, "image", ""),
    "lora": (_weights, "lora", ""),
    "gguf": (_gguf, "checkpoint", ".gguf"),
    "request": (_request, "request", ""),
}


def main() -> None:
    target, corpus = sys.argv[1], Path(sys.argv[2])
    read, field, suffix = TARGETS[target]
    corpus.mkdir(exist_ok=True)
    if not any(corpus.iterdir()):
        for case in cases(tuple(PARAMETERS)):
            if case.field == field and case.kind != "long" and case.name.endswith(suffix):
                seed = case.write(corpus)
                if seed.stat().st_size > 2**16:
                    seed.unlink()
    torch.set_num_threads(1)
    av.logging.set_level(av.logging.PANIC)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"input{suffix}"

        def one(data: bytes) -> None:
            path.write_bytes(data)
            try:
                read(path)
            except InputError as error:
                assert "\n" not in str(error), json.dumps(str(error))

        atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
