"""ComfyUI's own types (AUDIO, IMAGE, MASK, VIDEO, LATENT, SIGMAS, NOISE) as other packs hand them over, each kind with
what has to come of it.

A kind is a function that changes a good value, and its outcome: for what has one meaning the value that it means, for
everything else the words of the sentence that refuses it. `__init__.py` makes nodes of them for a real server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Audio = dict[str, Any]
Meaning = Callable[[Tensor, int], tuple[Tensor, int]]  # waveform [C, n] and rate → those that are meant


class Lazy(Mapping):
    """A dict that decodes when it is asked, as VideoHelperSuite's."""

    def __init__(self, inside: Audio) -> None:
        self.inside = inside

    def __getitem__(self, key: str) -> Any:
        return self.inside[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inside)

    def __len__(self) -> int:
        return len(self.inside)


class Unread(Lazy):
    """A lazy dict whose file has no sound: what VideoHelperSuite's raises is the whole text of a foreign program. It is
    in no table, because newer ComfyUIs read what a node gives, and then that node fails instead of the one after it."""

    def __init__(self) -> None:
        super().__init__({"waveform": None, "sample_rate": None})

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("no sound in /home/someone/clip.mp4:\na decoder's version\nand all its libraries")


def _wave(change: Callable[[Tensor], Any]) -> Callable[[Audio], Any]:
    """A new dict with another waveform [1, C, n]."""
    return lambda audio: {"waveform": change(audio["waveform"]), "sample_rate": audio["sample_rate"]}


def _copied(change: Callable[[Tensor], Any]) -> Callable[[Audio], Any]:
    """A copy of the dict with all of its keys and another waveform."""
    return lambda audio: {**audio, "waveform": change(audio["waveform"])}


def _rate(change: Callable[[int], Any]) -> Callable[[Audio], Any]:
    return lambda audio: {"waveform": audio["waveform"], "sample_rate": change(audio["sample_rate"])}


def _one(value: float) -> Callable[[Tensor], Tensor]:
    """A waveform with one sample of that value."""

    def change(waveform: Tensor) -> Tensor:
        waveform = waveform.clone()
        waveform[..., 50] = value
        return waveform

    return change


def _same(wave: Tensor, rate: int) -> tuple[Tensor, int]:
    return wave, rate


def _each(change: Callable[[Tensor], Tensor]) -> Meaning:
    return lambda wave, rate: (change(wave), rate)


def _strided(waveform: Tensor) -> Tensor:
    return waveform.transpose(1, 2).contiguous().transpose(1, 2)


AUDIO: dict[str, tuple[Callable[[Audio], Any], Meaning | str]] = {
    "same": (lambda audio: audio, _same),
    "without our key": (_wave(lambda w: w), _same),
    "other keys": (lambda audio: {**audio, "path": "x", "speakers": None}, _same),
    "speakers as numbers": (lambda audio: {**audio, "speakers": (1, 2)}, _same),
    "lazy": (Lazy, _same),
    "channels, samples": (_wave(lambda w: w[0]), _same),
    "samples": (_wave(lambda w: w[0, 0]), _each(lambda w: w[:1])),
    "four dimensions": (_wave(lambda w: w[None]), _same),
    "samples, channels": (_wave(lambda w: w[0].T), _same),
    "one, samples, channels": (_wave(lambda w: w.transpose(1, 2)), _same),
    "array": (_wave(lambda w: w.numpy()), _same),
    "array backwards": (_wave(lambda w: w.numpy()[..., ::-1]), _each(lambda w: w.flip(1))),
    "big-endian array": (_wave(lambda w: w.numpy().astype(">f4")), _same),
    "array of doubles": (_wave(lambda w: w.numpy().astype(np.float64)), _same),
    "array of halves": (_wave(lambda w: w.numpy().astype(np.float16)), _each(lambda w: w.half().float())),
    "array of int16": (
        _wave(lambda w: (w.numpy() * 32768).astype(np.int16)),
        _each(lambda w: (w * 32768).trunc() / 32768),
    ),
    "strided": (_wave(_strided), _same),
    "left of a pair": (_wave(lambda w: _strided(w)[:, :1]), _each(lambda w: w[:1])),
    "every second sample": (_wave(lambda w: w[..., ::2]), _each(lambda w: w[:, ::2])),
    "expanded": (_wave(lambda w: w[:, :1].expand(1, 2, -1)), _each(lambda w: w[:1].expand(2, -1))),
    "half": (_wave(Tensor.half), _each(lambda w: w.half().float())),
    "bfloat16": (_wave(Tensor.bfloat16), _each(lambda w: w.bfloat16().float())),
    "double": (_wave(Tensor.double), _same),
    "int16": (_wave(lambda w: (w * 32768).short()), _each(lambda w: (w * 32768).trunc() / 32768)),
    "int32": (_wave(lambda w: (w.double() * 2**31).int()), _same),
    "int8": (_wave(lambda w: (w * 128).char()), _each(lambda w: (w * 128).trunc() / 128)),
    "uint8": (_wave(lambda w: (w * 128 + 128).byte()), _each(lambda w: ((w * 128 + 128).floor() - 128) / 128)),
    "with gradient": (_wave(lambda w: w.clone().requires_grad_(True)), _same),
    "40 times as loud": (_wave(lambda w: w * 40), _each(lambda w: w * 40)),
    "float rate": (_rate(float), _same),
    "rate with a part": (_rate(lambda rate: rate + 0.2), _same),
    "numpy rate": (_rate(np.int64), _same),
    "numpy float rate": (_rate(np.float32), _same),
    "array rate": (_rate(lambda rate: np.array([rate])), _same),
    "tensor rate": (_rate(torch.tensor), _same),
    "tensor rate in a row": (_rate(lambda rate: torch.tensor([rate])), _same),
    "text rate": (_rate(str), _same),
    "text rate with blanks": (_rate(lambda rate: f" {rate}.0 "), _same),
    "copied, mono": (_copied(lambda w: w.mean(1, keepdim=True)), _each(lambda w: w.mean(0, keepdim=True))),
    "copied, four": (_copied(lambda w: w.repeat(1, 2, 1)), _each(lambda w: w.repeat(2, 1))),
    "copied, six": (_copied(lambda w: w.repeat(1, 3, 1)), _each(lambda w: w.repeat(3, 1))),
    "copied, eight": (_copied(lambda w: w.repeat(1, 4, 1)), _each(lambda w: w.repeat(4, 1))),
    "copied, nine": (_copied(lambda w: w[:, :1].repeat(1, 9, 1)), _each(lambda w: w[:1].repeat(9, 1))),
    "copied, 32": (_copied(lambda w: w[:, :1].repeat(1, 32, 1)), _each(lambda w: w[:1].repeat(32, 1))),
    "copied, resampled": (
        lambda audio: {**audio, "waveform": audio["waveform"][..., ::2], "sample_rate": audio["sample_rate"] // 2},
        lambda wave, rate: (wave[:, ::2], rate // 2),
    ),
    "none": (lambda audio: None, r"^audio: .*the video.* has no sound"),
    "a list": (lambda audio: [audio], r"^audio: .*a list"),
    "a path": (lambda audio: "sound.wav", r"^audio: .*a str"),
    "a tensor": (lambda audio: audio["waveform"], r"^audio: .*a Tensor"),
    "empty dict": (lambda audio: {}, r"^audio: it has no waveform and no sample_rate"),
    "no rate": (lambda audio: {"waveform": audio["waveform"]}, r"^audio: it has no sample_rate"),
    "no waveform": (lambda audio: {"sample_rate": audio["sample_rate"]}, r"^audio: it has no waveform"),
    "waveform is none": (_wave(lambda w: None), r"^audio: it has no waveform"),
    "waveform is a list": (_wave(Tensor.tolist), r"^audio: its waveform is a list"),
    "batch of two": (_wave(lambda w: torch.cat([w, w])), r"^audio: it is a batch of 2 sounds"),
    "batch of none": (_wave(lambda w: w[:0]), r"^audio: its shape is \(0, "),
    "no samples": (_wave(lambda w: w[..., :0]), r"^audio: its shape is .* 0\)"),
    "five dimensions": (_wave(lambda w: w[None, None].repeat(2, 1, 1, 1, 1)), r"^audio: its shape"),
    "100 channels": (_wave(lambda w: w[:, :1].repeat(1, 100, 1)), r"^audio: it has 100 channels"),
    "nan": (_wave(_one(float("nan"))), r"^audio: it has NaN or infinite"),
    "infinite": (_wave(_one(float("inf"))), r"^audio: it has NaN or infinite"),
    "all nan": (_wave(lambda w: w * float("nan")), r"^audio: it has NaN or infinite"),
    "beyond float32": (_wave(lambda w: w.double() * 1e300), r"^audio: it has NaN or infinite"),
    "16 bits as floats": (_wave(lambda w: w * 32768), r"^audio: its samples reach .* full scale is 1"),
    "int64": (_wave(lambda w: (w * 32768).long()), r"^audio: its samples are torch\.int64"),
    "complex": (_wave(lambda w: w.to(torch.complex64)), r"^audio: its samples are torch\.complex64"),
    "true and false": (_wave(lambda w: w > 0), r"^audio: its samples are torch\.bool"),
    "sparse": (_wave(lambda w: w.to_sparse()), r"^audio: its waveform is a Tensor"),
    "array of texts": (_wave(lambda w: np.array([["a"]])), r"^audio: its waveform is a"),
    "rate 0": (_rate(lambda rate: 0), r"^audio: 0 Hz"),
    "rate below 0": (_rate(lambda rate: -rate), r"^audio: -\d+ Hz"),
    "rate nan": (_rate(lambda rate: float("nan")), r"^audio: its sample rate is 'nan'"),
    "rate true": (_rate(lambda rate: True), r"^audio: its sample rate is 'True'"),
    "rate in words": (_rate(lambda rate: "44.1 kHz"), r"^audio: its sample rate is '44\.1 kHz'"),
    "two rates": (_rate(lambda rate: torch.tensor([rate, rate])), r"^audio: its sample rate is"),
    "rate in a dict": (_rate(lambda rate: {"rate": rate}), r"^audio: its sample rate is"),
}


def _black(image: Tensor) -> Tensor:
    return image[0, ..., :3]


# [1, H, W, 3] in 0..1 → what another node gives; the picture [H, W, 3] that is meant, or the sentence
IMAGE: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Tensor] | str]] = {
    "same": (lambda image: image, _black),
    "batch of three": (lambda image: torch.cat([image, image * 0, image * 0]), _black),
    "one picture": (lambda image: image[0], _black),
    "list": (lambda image: [image], _black),
    "list of pictures": (lambda image: [image[0], image[0] * 0], _black),
    "half clear": (
        lambda image: torch.cat([image, torch.full_like(image[..., :1], 0.5)], -1),
        lambda image: image[0] * 0.5,
    ),
    "clear": (lambda image: torch.cat([image, image[..., :1] * 0], -1), lambda image: image[0] * 0),
    "grey": (lambda image: image[..., :1], lambda image: image[0, ..., :1].expand(-1, -1, 3)),
    "grey and clear": (
        lambda image: torch.cat([image[..., :1], torch.full_like(image[..., :1], 0.5)], -1),
        lambda image: image[0, ..., :1].expand(-1, -1, 3) * 0.5,
    ),
    "bytes": (lambda image: (image * 255).round().byte(), _black),
    "half": (Tensor.half, lambda image: image[0].half().float()),
    "double": (Tensor.double, _black),
    "beyond 0 and 1": (lambda image: image * 3 - 1, lambda image: (image[0] * 3 - 1).clamp(0, 1)),
    "odd sides": (lambda image: image[:, :33, :35], lambda image: image[0, :33, :35]),
    "none": (lambda image: None, "^image: there is none"),
    "batch of none": (lambda image: image[:0], r"^image: its shape is \(0, "),
    "empty list": (lambda image: [], "^image: it is list"),
    "no width": (lambda image: image[:, :, :0], "^image: its shape"),
    "five channels": (lambda image: image.repeat(1, 1, 1, 2)[..., :5], "^image: its shape"),
    "channels first": (lambda image: image.permute(0, 3, 1, 2), "^image: its shape"),
    "five dimensions": (lambda image: image[None], "^image: its shape"),
    "nan": (lambda image: image * float("nan"), "^image: has NaN"),
    "integers": (lambda image: (image * 255).long(), r"^image: its pixels are torch\.int64"),
    "a text": (lambda image: "picture.png", "^image: it is str"),
    "array": (lambda image: image.numpy(), "^image: it is ndarray"),
}


class Nested(list):
    """Several latents in one, as newer ComfyUI's for sound and video together."""

    is_nested = True
    shape, ndim = (2,), 1


def _with_mask(mask: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda latent: {**latent, "noise_mask": mask(latent["samples"])}


def _samples(change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda latent: {**latent, "samples": change(latent["samples"])}


# a LATENT [1, 128, F, H, W] → what another node gives; None where it is read, or the sentence
LATENT: dict[str, tuple[Callable[[dict[str, Any]], Any], str | None]] = {
    "same": (lambda latent: latent, None),
    "other keys": (lambda latent: {**latent, "batch_index": [0], "downscale_ratio_spacial": 32}, None),
    "half": (_samples(Tensor.half), None),
    "mask of ones": (_with_mask(lambda s: torch.ones(1, 1, s.shape[2], 1, 1)), None),
    "mask of frames": (_with_mask(lambda s: torch.zeros(1, 1, s.shape[2], 1, 1)), None),
    "mask as a picture": (_with_mask(lambda s: torch.ones(1, 64, 96)), None),
    "batch of two": (_samples(lambda s: torch.cat([s, s])), r"^latent: it is torch\.float32 \[2, 128"),
    "four dimensions": (_samples(lambda s: s[:, :, 0]), r"^latent: it is torch\.float32 \[1, 128"),
    "16 channels": (_samples(lambda s: s[:, :16]), r"^latent: it is torch\.float32 \[1, 16"),
    "nested": (_samples(lambda s: Nested([s, s])), "^latent: it is nested"),
    "no frames": (_samples(lambda s: s[:, :, :0]), r"^latent: it is torch\.float32 \[1, 128, 0"),
    "integers": (_samples(Tensor.long), r"^latent: it is torch\.int64"),
    "nan": (_samples(lambda s: s * float("nan")), "^latent: it has NaN"),
    "longer": (_samples(lambda s: torch.cat([s, s], 2)), "^latent: it has .* frames, but the audio"),
    "none": (lambda latent: None, "^latent: it is missing"),
    "no samples": (lambda latent: {}, "^latent: it is missing"),
    "a tensor": (lambda latent: latent["samples"], "^latent: it is missing"),
    "mask of nan": (_with_mask(lambda s: torch.full((1, 1, 1, 1, 1), float("nan"))), "^latent: its noise mask has NaN"),
    "two masks": (_with_mask(lambda s: torch.zeros(2, 1, 1, 1, 1)), r"^latent: its noise mask is \[2"),
    "mask in a row": (_with_mask(lambda s: torch.zeros(9)), r"^latent: its noise mask is \[9"),
    "mask as a list": (_with_mask(lambda s: [0.0]), "^latent: its noise mask is list"),
}

# SIGMAS → the schedule that is meant, or the sentence
SIGMAS: dict[str, tuple[Any, list[float] | str]] = {
    "falling": (torch.tensor([1.0, 0.5, 0.0]), [1.0, 0.5, 0.0]),
    "the end of a split": (torch.tensor([0.7, 0.4, 0.0]), [0.7, 0.4, 0.0]),
    "the beginning of a split": (torch.tensor([1.0, 0.8, 0.5]), [1.0, 0.8, 0.5]),
    "half": (torch.tensor([1.0, 0.5, 0.0]).half(), [1.0, 0.5, 0.0]),
    "double": (torch.tensor([1.0, 0.5, 0.0]).double(), [1.0, 0.5, 0.0]),
    "in a row": (torch.tensor([[1.0, 0.5, 0.0]]), [1.0, 0.5, 0.0]),
    "list": ([1.0, 0.5, 0.0], [1.0, 0.5, 0.0]),
    "array": (np.array([1.0, 0.5, 0.0]), [1.0, 0.5, 0.0]),
    "one by rounding": (torch.tensor([1.0000001, 0.5, 0.0]), [1.0, 0.5, 0.0]),
    "repeated": (torch.tensor([1.0, 0.5, 0.5, 0.0, 0.0]), [1.0, 0.5, 0.0]),
    "none": (None, "^sigmas: it is NoneType"),
    "a text": ("1, 0.5, 0", "^sigmas: it is str"),
    "no numbers": (["a", "b"], "^sigmas: it is no row"),
    "empty": (torch.zeros(0), "^sigmas has no step"),
    "one": (torch.tensor([1.0]), "^sigmas has no step"),
    "only zeros": (torch.zeros(3), "^sigmas has no step"),
    "square": (torch.ones(2, 2), "^sigmas has no step"),
    "rising": (torch.tensor([0.1, 0.5, 1.0]), "^sigmas is .*the values rise"),
    "rising between": (torch.tensor([1.0, 0.3, 0.6, 0.0]), "^sigmas is .*the values rise"),
    "of another model": (torch.tensor([14.6, 5.0, 0.03, 0.0]), "^sigmas is .*at most 1"),
    "0 between": (torch.tensor([1.0, 0.0, 0.5, 0.0]), "^sigmas is .*above 0"),
    "below 0": (torch.tensor([1.0, 0.5, -0.1]), "^sigmas is .*above 0"),
    "nan": (torch.tensor([1.0, float("nan"), 0.0]), "^sigmas is .*above 0"),
    "infinite": (torch.tensor([float("inf"), 0.5, 0.0]), "^sigmas is .*above 0"),
}


class Coloured:
    """Noise of a pack's own, from its seed."""

    def __init__(self, seed: int = 5, change: Callable[[Tensor], Any] = lambda noise: noise) -> None:
        self.seed, self.change = seed, change

    def generate_noise(self, latent: dict[str, Any]) -> Any:
        shape = latent["samples"].shape
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        return self.change(noise * 0.5 + noise.roll(1, -1) * 0.5)


class Failing:
    """A NOISE that is made for pictures."""

    seed = 1

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        batch, channels, height, width = latent["samples"].shape
        return torch.zeros(batch, channels, height, width)


# NOISE → None where it is used, or the sentence
NOISE: dict[str, tuple[Any, str | None]] = {
    "coloured": (Coloured(), None),
    "double": (Coloured(change=Tensor.double), None),
    "none": (None, "^noise: it is NoneType"),
    "a tensor": (torch.zeros(1), "^noise: it is Tensor"),
    "a failure": (Failing(), "^noise: Failing failed"),
    "another shape": (Coloured(change=lambda noise: noise[..., :1]), r"^noise: it is \[1, 128"),
    "no tensor": (Coloured(change=lambda noise: noise.tolist()), "^noise: it is list"),
    "nan": (Coloured(change=lambda noise: noise * float("nan")), "^noise: it has NaN"),
}


# a MASK [n, H, W] in 0..1 → what another node gives; the mask that is meant, or the sentence
MASK: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Tensor] | str]] = {
    "same": (lambda mask: mask, lambda mask: mask),
    "one": (lambda mask: mask[0], lambda mask: mask[:1]),
    "with a channel": (lambda mask: mask[:, None], lambda mask: mask),
    "bytes": (lambda mask: (mask * 255).round().byte(), lambda mask: (mask * 255).round() / 255),
    "true and false": (lambda mask: mask > 0.5, lambda mask: (mask > 0.5).float()),
    "half": (Tensor.half, lambda mask: mask.half().float()),
    "beyond 0 and 1": (lambda mask: mask * 3 - 1, lambda mask: (mask * 3 - 1).clamp(0, 1)),
    "none of it": (lambda mask: mask[:0], "^mask: it is Tensor without numbers"),
    "a picture": (lambda mask: mask[..., None].expand(-1, -1, -1, 3), "^mask: its shape is"),
    "in a row": (lambda mask: mask[0, 0], "^mask: its shape is"),
    "nan": (lambda mask: mask * float("nan"), "^mask: it has NaN"),
    "a list": (lambda mask: mask.tolist(), "^mask: it is list"),
    "complex": (lambda mask: mask.to(torch.complex64), "^mask: it is Tensor without numbers"),
}


class Parts:
    """A VIDEO of a pack's own, which has only frames."""

    def __init__(self, images: Any, audio: Any = None, frame_rate: Any = 12) -> None:
        self.images, self.audio, self.frame_rate = images, audio, frame_rate

    def get_components(self) -> Any:
        if self.images is None:
            raise KeyError("frames")
        return self


# frames [n, H, W, 3] in 0..1 → what another node gives as VIDEO; its frames per second, or the sentence
VIDEO: dict[str, tuple[Callable[[Tensor], Any], float | str]] = {
    "frames": (Parts, 12),
    "its rate as a text": (lambda images: Parts(images, frame_rate="23.976"), 24000 / 1001),
    "sound without samples": (lambda images: Parts(images, {"waveform": None, "sample_rate": 1}), 12),
    "sound that cannot be read": (lambda images: Parts(images, Unread()), r"^audio: Unread cannot be read \(Runtime"),
    "none": (lambda images: None, "^video: it is NoneType"),
    "images": (lambda images: images, "^video: it is Tensor"),
    "a path": (lambda images: "film.mp4", "^video: it is str"),
    "a failure": (lambda images: Parts(None), "^video: Parts cannot be read"),
    "no frames": (lambda images: Parts(images[:0]), "^images: it is"),
    "no rate": (lambda images: Parts(images, frame_rate=None), "^video: its frame rate is None"),
    "rate 0": (lambda images: Parts(images, frame_rate=0), "^video: its frame rate is 0"),
}
