"""Reads a LoRA file: which layers it names, the kind of change of each, and its scale.

The file's own names of layers are kept; lora.py matches them with a model. A scale is alpha / rank. alpha stands beside
the layer's tensors, or for the whole file in the metadata, as diffusers and peft write it. What is not read gets a
reason.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..models import OF_ONE_VERSION, V23, V25, generation, named_version
from .adapters import Adapter, Decomposed, Full, Hadamard, Kronecker, LowRank, Replacement
from .files import open_safetensors
from .formats import BESIDE, SCALES
from .mapping import MappedFile
from .quantized import one_per_row

TENSORS = tuple(  # (tensor's name in the table below, how a key ends); the first that fits counts
    (name, re.compile(rf"(?P<layer>.+?){ending}"))
    for name, ending in (
        ("down", r"[._]lora(_linear_layer)?[._](A|down)(\.default|(\.[\w-]+)?\.weight)?"),
        ("up_bias", r"[._]lora(_linear_layer)?[._](B|up)(\.[\w-]+)?\.bias"),
        ("up", r"[._]lora(_linear_layer)?[._](B|up)(\.default|(\.[\w-]+)?\.weight)?"),
        ("alpha", r"\.alpha"),
        ("magnitude", r"\.(dora_scale|lora_magnitude_vector(\.default|(\.[\w-]+)?\.weight)?)"),
        *((name, rf"\.{name}") for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
        *((name, rf"\.{name}") for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")),
        ("diff", r"\.(diff|w_norm)"),
        ("diff_b", r"\.(diff_b|b_norm)"),
        ("set_weight", r"\.set_weight"),
    )
)
UNREAD = tuple(
    (re.compile(rf"(?P<layer>.+?)\.({ending})"), kind)
    for ending, kind in (
        (r"lora_mid(\.weight)?|lokr_t[12]|hada_t[12]", "a Tucker decomposition"),
        (r"[ab][12]\.weight", "GLoRA"),
        (r"oft_(blocks|diag|[rR])(\.\w+)?|(scaled_)?c?oft_\w*metadata|rescale", "OFT"),
        (r"boft_[rRsS](\.weight)?", "BOFT"),
        (r"ia3_l(\.weight)?|on_input", "IA3"),
        (r"vera_lambda_[bd]", "VeRA"),
        (r"lora_embedding_[AB](\.weight)?", "an embedding"),
        (r"reshape_weight", "a layer of another size"),
        (r"weight|bias", "a whole weight and not a change"),
    )
)
"""Endings of keys that belong to kinds that are not read. Such a key spoils its layer's other tensors, too."""
OTHER = "of a kind that is not read"
PASSED_OVER = (*BESIDE, "initial_norm")
"""Last steps of keys that are no part of a change: scales are read with the tensor that they scale, and musubi-tuner
writes the norms of the model's own weights beside DoRA of LoKr."""
IC_NAME = re.compile(r"(?<![a-z0-9])ic[-_ ]?lora", re.IGNORECASE)
IC_SPACE = ("reference_downscale_factor", "reference_spatial_scale_factor")  # older and newer trainers write these
IC_TIME = "reference_temporal_scale_factor"
IC_TRAINED, IC_WAYS = "ss_ic_lora_strategy", frozenset({"v2v", "av_ic", "video_ref_only_av"})
"""Signs of an IC-LoRA: its name, which the published ones have, a factor of its reference, which the makers' trainer
writes only where it is not 1, or how musubi-tuner trained it with a video beside the clip."""
OF_VOICE = re.compile(r"(?<![a-z0-9])id[-_ ]?lora", re.IGNORECASE)
"""In the name of a LoRA that takes over the voice of an example. By its makers it acts only where that is heard."""
HDR = re.compile(r"(?<![a-z0-9])hdr(?![a-z0-9])", re.IGNORECASE)
"""In the name of an IC-LoRA that makes pictures in ARRI LogC3. Shown as SDR they are flat and grey."""
LARGEST_FACTOR = 64  # of the two above; larger ones are damage
DIGITS = 10  # of a number in the metadata; Python reads no number of any length
ADAPTER = "lora_adapter_metadata"
LARGEST = 1e12  # of alpha and rank in the metadata; larger ones are damage
CONFIG = "adapter_config.json"
"""peft's file with alpha, beside its adapter_model.safetensors."""
Slot = tuple[str, str]
"""A layer's name in the file, and `weight` or `bias`."""


@dataclass(frozen=True, eq=False)
class Lora:
    """An opened LoRA file. changes: by the file's name of the layer and `weight` or `bias`. unread: why keys or layers
    are not used. version: of the model that it was made for, by its metadata or its name, "" if neither tells.
    reference: of an IC-LoRA, how many times smaller than the clip its reference video is, and of how many frames one is
    taken."""

    path: Path
    changes: Mapping[Slot, Adapter] = field(repr=False)
    unread: Mapping[str, str] = field(default_factory=dict, repr=False)
    version: str = ""
    reference: tuple[int, int] | None = None

    def check_version(self, checkpoint: str, version: str) -> str:
        """Returns a sentence for the report if it was made for LTX-2.3 and `version`, that of the file `checkpoint`, is
        LTX-2.5: the makers found that most such LoRAs work there. Otherwise "".

        Raises InputError if they say that it does not, or if it was made for a newer version. The camera LoRAs are of
        LTX-2, which is not supported, and are used with all versions.
        """
        theirs, ours = generation(self.version), generation(version)
        if theirs is V23 and ours is V25 and not OF_ONE_VERSION.search(self.path.name):
            return (
                f"{self.path.name}: was made for {theirs.name}; most such LoRAs work with {ours.name}, and some do not"
            )
        if theirs and ours and theirs is not ours:
            raise InputError(
                f"{self.path}: was made for {theirs.name}, and {checkpoint} is {ours.name}, whose layers mean other "
                f"things; use a LoRA made for {ours.name}."
            )
        return ""


def load_lora(path: str | Path, referenced: bool = False) -> Lora:
    """Opens a LoRA; its tensors map the file. referenced: whether there is a reference video, which an IC-LoRA needs.

    Raises InputError if the file is missing, cut short or not safetensors, if it holds nothing that can be used, or if
    it is an IC-LoRA and there is no reference.
    """
    path = Path(path)
    file = open_safetensors(path, "the LoRA file")
    metadata = file.metadata() or {}
    reference = None
    if (by_name := IC_NAME.search(path.name)) and HDR.search(path.name):
        raise InputError(
            f"{path}: is an IC-LoRA for HDR (by its name), and HDR pictures cannot be decoded or written here; use the "
            "makers' HDRICLoraPipeline for it, or choose another LoRA."
        )
    said = [name for name in (*IC_SPACE, IC_TIME) if name in metadata]
    said += [IC_TRAINED] if metadata.get(IC_TRAINED) in IC_WAYS else []
    if by_name or said:
        sign = "by its name" if by_name else f"{said[0]} in its metadata"
        if not referenced:
            raise InputError(
                f"{path}: is an IC-LoRA ({sign}), which needs a reference video; give the command one with "
                "--reference, or choose another LoRA."
            )
        space = next((name for name in IC_SPACE if name in metadata), IC_SPACE[0])
        reference = _factor_of(path, metadata, space), _factor_of(path, metadata, IC_TIME)
    stored = frozenset(file.keys())
    found, unread = _sorted(path, stored)
    alphas = _Alphas.of(path, metadata)
    changes: dict[Slot, Adapter] = {}
    for layer, keys in found.items():
        if layer in unread:
            continue
        try:
            read = _Layer(path, file, stored, keys).changes(alphas, layer)
        except _UnreadError as error:
            unread[layer] = str(error)
        else:
            changes |= {(layer, last): adapter for last, adapter in read.items()}
    if not changes:
        name, reason = next(iter(unread.items()), ("", ""))
        example = f", e.g. {name}: {reason}" if name else ""
        raise InputError(
            f"{path}: holds no LoRA that can be used (no pairs named lora_A and lora_B, or lora_down and lora_up; no "
            f"DoRA, LoKr, LoHa or differences{example}); choose another file."
        )
    return Lora(path, changes, unread, metadata.get("model_version") or named_version(path.name), reference)


def _factor_of(path: Path, metadata: Mapping[str, str], name: str) -> int:
    """A factor of an IC-LoRA's reference, 1 if its metadata has none. Raises InputError if it is no such number."""
    text = metadata.get(name, "1").strip()
    if not (text.isascii() and text.isdecimal() and len(text) < DIGITS and 1 <= int(text) <= LARGEST_FACTOR):
        raise InputError(f"{path}: its {name} is {text!r:.60}, not a whole number; download the LoRA again.")
    return int(text)


def _sorted(path: Path, keys: Collection[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Sorts the keys: by layer the key of each of its tensors, and for what is not read its reason."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    unread: dict[str, str] = {}
    for key in sorted(keys):
        if key.rpartition(".")[2] in PASSED_OVER or (key.endswith("_scale") and key.removesuffix("_scale") in keys):
            continue
        for kind, pattern in TENSORS:
            if match := pattern.fullmatch(key):
                layer = found[match["layer"]]
                if kind in layer:
                    raise InputError(
                        f"{path}: {layer[kind]} and {key} are for the same layer; use another copy of the LoRA."
                    )
                layer[kind] = key
                break
        else:
            known = ((match["layer"], kind) for pattern, kind in UNREAD if (match := pattern.fullmatch(key)))
            layer, kind = next(known, (key, OTHER))
            unread[layer] = kind
    return dict(found), unread


def is_of_lora(key: str) -> bool:
    """Whether a key names a tensor of a LoRA."""
    return any(pattern.fullmatch(key) for _, pattern in TENSORS)


class _UnreadError(Exception):
    """Why a layer is not used."""


@dataclass(frozen=True)
class _Layer:
    """The tensors of one layer. stored: all keys of the file. keys: the tensor's name in TENSORS → its key."""

    path: Path
    file: MappedFile
    stored: frozenset[str]
    keys: Mapping[str, str]

    def changes(self, alphas: _Alphas, layer: str) -> dict[str, Adapter]:
        """Returns the changes of the layer's weight and bias. Raises _UnreadError if it cannot be used."""
        kinds = [
            kind
            for kind, mark in (
                (self._pair, ("down", "up")),
                (self._hadamard, ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
                (self._kronecker, ("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a")),
                (self._full, ("diff",)),
                (self._replacement, ("set_weight",)),
            )
            if any(name in self.keys for name in mark)
        ]
        if len(kinds) > 1:
            first, second = sorted(self.keys.values())[:2]
            raise InputError(f"{self.path}: {first} and {second} are for the same layer; use another copy of the LoRA.")
        found: dict[str, Adapter] = {}
        if kinds:
            found["weight"] = kinds[0](lambda rank: self._scale(alphas, layer, rank))
        elif "magnitude" in self.keys:
            raise _UnreadError("DoRA without its pair")
        if "magnitude" in self.keys:
            magnitude = self._tensor("magnitude")
            found["weight"] = Decomposed(found["weight"], magnitude)
        if "diff_b" in self.keys:
            found["bias"] = Full(self._tensor("diff_b"))
        elif "up_bias" in self.keys and isinstance(found.get("weight"), LowRank):
            found["bias"] = Full(self._tensor("up_bias"), self._scale(alphas, layer, found["weight"].down.shape[0]))
        if not found:
            raise _UnreadError("half of a pair" if "up_bias" in self.keys else "an alpha without its pair")
        return found

    def _pair(self, scale: Callable[[int | None], float]) -> Adapter:
        self._need("down", "up", what="half of a pair")
        (down, down_scale), (up, up_scale) = self._factor("down"), self._factor("up")
        if down.shape[0] != up.shape[1]:
            first, second = self.keys["down"], self.keys["up"]
            raise InputError(
                f"{self.path}: {first} and {second} differ in rank; the file is damaged, download it again."
            )
        return LowRank(down, up, scale(down.shape[0]) * down_scale * up_scale)

    def _hadamard(self, scale: Callable[[int | None], float]) -> Adapter:
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        self._need(*names, what="a part of LoHa")
        (up, a), (down, b), (up_2, c), (down_2, d) = map(self._factor, names)
        self._check(up.shape[1] == down.shape[0] and up_2.shape[1] == down_2.shape[0], names)
        self._check(up.shape[0] == up_2.shape[0] and down.shape[1] == down_2.shape[1], names)
        return Hadamard(up, down, up_2, down_2, scale(down.shape[0]) * a * b * c * d)

    def _kronecker(self, scale: Callable[[int | None], float]) -> Adapter:
        factor, rank, sides = 1.0, None, []
        for side in ("lokr_w1", "lokr_w2"):
            names = (side,) if side in self.keys else (f"{side}_a", f"{side}_b")
            self._need(*names, what="a part of LoKr")
            factors = [self._factor(name) for name in names]
            if len(factors) == 2:
                self._check(factors[0][0].shape[1] == factors[1][0].shape[0], names)
                rank = factors[1][0].shape[0]
            factor *= math.prod(number for _, number in factors)
            sides.append(tuple(tensor for tensor, _ in factors))
        return Kronecker(*sides, factor * scale(rank))

    def _full(self, scale: Callable[[int | None], float]) -> Adapter:
        return Full(self._tensor("diff"))

    def _replacement(self, scale: Callable[[int | None], float]) -> Adapter:
        return Replacement(self._tensor("set_weight"))

    def _need(self, *names: str, what: str) -> None:
        if not all(name in self.keys for name in names):
            raise _UnreadError(what)

    def _check(self, good: bool, names: tuple[str, ...]) -> None:
        if not good:
            first, second = self.keys[names[0]], self.keys[names[1]]
            raise InputError(
                f"{self.path}: {first} and {second} do not fit each other; the file is damaged, download it again."
            )

    def _factor(self, name: str) -> tuple[Tensor, float]:
        """A matrix as the file stores it, and the number that multiplies it. A 1x1 convolution is flattened."""
        tensor, scale = self._stored(name)
        if tensor.ndim < 2 or math.prod(tensor.shape[2:]) != 1:
            raise _UnreadError("a change of a convolution")
        if 0 in tensor.shape:
            raise _UnreadError("of rank 0, so it changes nothing")
        return tensor.flatten(1), scale

    def _tensor(self, name: str) -> Tensor:
        tensor, scale = self._stored(name)
        return tensor if scale == 1 else tensor.float() * scale

    def _stored(self, name: str) -> tuple[Tensor, float]:
        """A tensor with the scale beside it. A scale per row is applied here, a single number is returned."""
        key = self.keys[name]
        tensor = self.file.get_tensor(key)
        scale = self._beside(key)
        if scale is None:
            if not tensor.is_floating_point():
                raise _UnreadError(f"stored as {tensor.dtype} without a scale")
            return tensor, 1.0
        if not scale.is_floating_point() or tensor.dtype == torch.uint8 or tensor.element_size() != 1:
            raise _UnreadError(f"stored as {tensor.dtype} with a scale of {scale.dtype}")
        if scale.numel() == 1:
            return tensor, _number(scale, self.path, key)
        if tensor.ndim != 2 or not one_per_row(scale, tensor.shape[0]):
            raise _UnreadError(f"stored with a scale of shape {tuple(scale.shape)}")
        return tensor.float() * scale.float().view(-1, 1), 1.0

    def _beside(self, key: str) -> Tensor | None:
        layer = key.removesuffix(".weight")
        names = (*(f"{layer}.{scale}" for scale in SCALES), f"{key}_scale")
        return next((self.file.get_tensor(name) for name in names if name in self.stored), None)

    def _scale(self, alphas: _Alphas, layer: str, rank: int | None) -> float:
        """alpha / rank. rank: None for LoKr of two whole matrices, whose alpha LyCORIS does not use."""
        key = self.keys.get("alpha")
        if key is None:
            return alphas.scale(layer, rank)
        return 1.0 if rank is None else _number(self.file.get_tensor(key), self.path, key) / rank


@dataclass(frozen=True)
class _Alphas:
    """alpha for a whole file, as peft writes it. parts: by the model's part in front of the layers' names, "" for all:
    peft's configuration."""

    path: Path
    parts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, path: Path, metadata: Mapping[str, str]) -> _Alphas:
        """Reads the metadata, or else peft's own file beside it. Raises InputError if they are no JSON objects."""
        beside = path.with_name(CONFIG)
        text, where = metadata.get(ADAPTER), f"the {ADAPTER} in its metadata"
        if text is None and path.name.startswith("adapter_model.") and beside.is_file():
            text, where = beside.read_text("utf-8", errors="replace"), f"the {CONFIG} beside it"
        if text is None:
            return cls(path, {})
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: {where} is not JSON ({error}); download the LoRA again.") from error
        if not isinstance(entries, dict):
            raise InputError(f"{path}: {where} is not a JSON object; download the LoRA again.")
        parts: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, value in entries.items():
            part, _, last = name.rpartition(".")
            parts[part][last] = value
        return cls(path, parts)

    def scale(self, layer: str, rank: int | None) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA; 1 if the file names no alpha for this layer. rank: None for
        the one in the configuration."""
        named = (part for part in sorted(self.parts, key=len, reverse=True) if part and layer.startswith(f"{part}."))
        part = next(named, "" if "" in self.parts or len(self.parts) != 1 else next(iter(self.parts)))
        config = self.parts.get(part, {})
        alpha = config.get("lora_alpha", config.get("alpha"))
        pattern = config.get("alpha_pattern") or {}
        if not isinstance(pattern, dict):
            raise self._wrong("alpha_pattern", pattern)
        for name, value in pattern.items():
            plain = name.removeprefix("^").removesuffix("$").replace("\\.", ".")
            if re.search(r"[][\\^$*+?(){}|]", plain):
                raise self._wrong("alpha_pattern", name)
            if layer == plain or layer.endswith(f".{plain}"):
                alpha = value
                break
        rank = config.get("r") if rank is None else rank
        if alpha is None or rank is None:
            return 1.0
        for name, value in (("lora_alpha", alpha), ("r", rank)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST:
                raise self._wrong(name, value)
        if not rank:
            raise self._wrong("r", rank)
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def _wrong(self, name: str, value: object) -> InputError:
        return InputError(f"{self.path}: its {name} {value!r:.60} is not read; use another copy of the LoRA.")


def _number(tensor: Tensor, path: Path, key: str) -> float:
    value = float(tensor.item()) if tensor.numel() == 1 else math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}: {key} is not one finite number; the file is damaged, download it again.")
    return value
