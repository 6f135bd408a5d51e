"""Rewrites a tiny checkpoint into the layouts that people have: fp8 files, GGUF files, parts in files of their own.

Layouts after the published files (Lightricks/LTX-2.3, Kijai/LTX2.3_comfy, QuantStack/LTX-2.3-GGUF) and the converters
that wrote them. Each writer returns what the quantized weights mean, by the original file's names, computed here or by
the gguf package and not by the pack.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
PREFIX = "model.diffusion_model."
CONNECTORS = (PREFIX + "video_embeddings_connector.", PREFIX + "audio_embeddings_connector.")
PROJECTION = "text_embedding_projection."
SCALE_AT = {  # where a block's float16 scales stand, by the format's definition
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()


def transformer_only(name: str) -> bool:
    return name.startswith(PREFIX) and not name.startswith(CONNECTORS)


def block_layer(name: str) -> bool:
    """A linear layer's weight of a block."""
    inside = re.fullmatch(rf"{re.escape(PREFIX)}transformer_blocks\.\d+\..*\.weight", name)
    return bool(inside) and "norm" not in name


def block_layers(
    tensors: Tensors, written: Tensors, keep: Callable[[str], bool], strip: str, spare: bool
) -> Iterator[tuple[str, str, Tensor]]:
    """Each layer's weight of the blocks, float32, with its name in the source and the layer's in the new file. All else
    that is to be kept is put into `written`. spare: the first block stays as it is."""
    for name, tensor in tensors.items():
        if not keep(name):
            continue
        key = name.removeprefix(strip)
        if block_layer(name) and not (spare and ".transformer_blocks.0." in name):
            yield name, key.removesuffix(".weight"), tensor.float()
        else:
            written[key] = tensor


def write_fp8(
    source: Path,
    target: Path,
    style: str = "official",
    keep: Callable[[str], bool] = lambda name: True,
    strip: str = "",
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> Tensors:
    """style: official (weight_scale, input_scale, a list in the header; the first block stays as it is), marked (the
    same, told by comfy_quant tensors), scaled_fp8 (scale_weight and a marker), plain (cast), rows (a scale a row).
    dtype: of the values, another one than float8_e4m3fn for scaled_fp8, plain and rows."""
    top = torch.finfo(dtype).max
    tensors, metadata = read(source)
    written: Tensors = {}
    meaning: Tensors = {}
    layers = {}
    for name, layer, weight in block_layers(tensors, written, keep, strip, style in ("official", "marked")):
        if style == "plain":
            scale = torch.ones(())
        elif style == "rows":
            scale = weight.abs().amax(dim=1, keepdim=True) / top
        else:
            scale = weight.abs().amax() / top
        values = written[f"{layer}.weight"] = (weight / scale).clamp(-top, top).to(dtype)
        meaning[name] = values.float() * scale
        if style in ("official", "marked"):
            written[layer + ".weight_scale"], written[layer + ".input_scale"] = scale, torch.tensor(0.0157)
            layers[layer] = {"format": "float8_e4m3fn"}
            if style == "marked":
                note = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
                written[layer + ".comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
        elif style in ("scaled_fp8", "rows"):
            written[layer + ".scale_weight"] = scale
    if style == "scaled_fp8":
        written[("" if strip == PREFIX else PREFIX) + "scaled_fp8"] = torch.zeros(2, dtype=dtype)
    if style == "official":
        metadata = {**metadata, "_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(written, target, metadata)
    return meaning


def write_gguf(
    source: Path,
    target: Path,
    kind: str,
    keep: Callable[[str], bool] = transformer_only,
    strip: str = PREFIX,
    config: bool = True,
) -> Tensors:
    """As City96's converter writes them: tensors of one dimension in F32; `kind` where its block divides the rows, else
    F16. Kinds that the gguf package cannot write get random blocks, so that the whole range of their bits is met."""
    import gguf
    import numpy

    tensors, metadata = read(source)
    generator = numpy.random.default_rng(7)
    writer = gguf.GGUFWriter(target, "ltxv")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if config:
        writer.add_string("config", metadata["config"])
    meaning: Tensors = {}
    for name, tensor in tensors.items():
        if not keep(name):
            continue
        values = tensor.float().numpy()
        chosen = gguf.GGMLQuantizationType[kind]
        if values.ndim == 1:
            chosen = gguf.GGMLQuantizationType.F32
        elif values.shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0]:
            chosen = gguf.GGMLQuantizationType.F16
        if chosen.name in SCALE_AT:
            data = _random_blocks(gguf, numpy, generator, chosen, values)
        else:
            data = gguf.quants.quantize(values, chosen)
        writer.add_tensor(name.removeprefix(strip), data, raw_dtype=chosen)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meaning[name] = torch.from_numpy(numpy.array(gguf.quants.dequantize(data, chosen), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meaning


def _random_blocks(gguf, numpy, generator, kind, values):
    count, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (values.size // count, size), dtype=numpy.uint8)
    for start in SCALE_AT[kind.name]:
        scales = (generator.uniform(0.5, 1.5, len(blocks)) * 1e-4).astype(numpy.float16)
        blocks[:, start : start + 2] = scales[:, None].view(numpy.uint8)
    return blocks.reshape(values.shape[0], -1)


def write_meaning(source: Path, target: Path, meaning: Tensors) -> Path:
    """The checkpoint in float32 with these weights in the place of its own: what a quantized file must compute like."""
    tensors, metadata = read(source)
    save_file({**{k: t.float() for k, t in tensors.items()}, **meaning}, target, metadata)
    return target


def write_split(source: Path, folder: Path) -> dict[str, Path]:
    """Video VAE (bare names), audio VAE with the vocoder (prefixed), text projection, connectors, transformer."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, metadata = read(source)
    parts = {
        "transformer": ("ltx-2.3_transformer_only_bf16.safetensors", transformer_only, ""),
        "video_vae": ("LTX23_video_vae_bf16.safetensors", lambda n: n.startswith("vae."), "vae."),
        "audio_vae": ("LTX23_audio_vae_bf16.safetensors", lambda n: n.startswith(("audio_vae.", "vocoder.")), ""),
        "projection": ("ltx-2.3_text_projection_bf16.safetensors", lambda n: n.startswith(PROJECTION), ""),
        "connectors": ("connectors.safetensors", lambda n: n.startswith((*CONNECTORS, PROJECTION)), ""),
        "with_connectors": ("ltx-2.3_diffusion_model.safetensors", lambda n: n.startswith(PREFIX), PREFIX),
    }
    files = {}
    for part, (file, keep, strip) in parts.items():
        files[part] = folder / file
        chosen = {name.removeprefix(strip): tensor for name, tensor in tensors.items() if keep(name)}
        save_file(chosen, files[part], {"config": metadata["config"]})
    return files


def write_blocks(
    source: Path,
    target: Path,
    kind: str,
    notes: str = "tensors",
    keep: Callable[[str], bool] = lambda name: True,
    strip: str = "",
    spare: bool = True,
) -> Tensors:
    """A file in one of ComfyUI's formats, as comfy-kitchen writes and reads it: nvfp4, mxfp8, int8 (a scale for all
    values), int8_rows, or convrot. spare: the first block stays as it is.

    notes: where the file tells the format: in comfy_quant tensors, in the header, or nowhere, as in the official NVFP4
    file of LTX-2.5, which has a calibrated input_scale.
    """
    tensors, metadata = read(source)
    written: Tensors = {}
    meaning: Tensors = {}
    layers = {}
    for name, layer, weight in block_layers(tensors, written, keep, strip, spare):
        parts, said, meaning[name] = blocks_of(weight, kind)
        written |= {f"{layer}.{part}": value for part, value in parts.items()}
        if notes == "nowhere":
            written[f"{layer}.input_scale"] = torch.tensor(0.0157)
        elif notes == "header":
            layers[layer] = said
        else:
            written[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    if notes == "header":
        metadata = {**metadata, "_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(written, target, metadata)
    return meaning


WRITERS = {"nvfp4": "quantize_nvfp4", "mxfp8": "quantize_mxfp8", "convrot": "quantize_int8_convrot_weight"}


def can_write(kind: str) -> bool:
    """Whether there is a comfy-kitchen that knows the format. 0.2.3 of ComfyUI 0.8 knows nvfp4 alone."""
    try:
        from comfy_kitchen.backends.eager import quantization as kitchen
    except ImportError:
        return False
    return hasattr(kitchen, WRITERS.get(kind, "quantize_int8_tensorwise"))


def blocks_of(weight: Tensor, kind: str) -> tuple[Tensors, dict[str, object], Tensor]:
    """A weight in one of ComfyUI's formats: the tensors of its layer, the note about it, and what they mean, all by
    comfy-kitchen's plain formulas."""
    from comfy_kitchen.backends.eager import quantization as kitchen

    out, width = weight.shape
    if kind == "nvfp4":
        whole = weight.abs().amax() / (448 * 6)
        data, scales = kitchen.quantize_nvfp4(weight, whole, pad_16x=True)
        parts = {"weight": data, "weight_scale": scales, "weight_scale_2": whole}
        return parts, {"format": kind}, kitchen.dequantize_nvfp4(data, whole, scales, torch.float32)[:out, :width]
    if kind == "mxfp8":
        data, scales = kitchen.quantize_mxfp8(weight, pad_32x=True)
        parts = {"weight": data, "weight_scale": scales.view(torch.uint8)}
        return parts, {"format": kind}, kitchen.dequantize_mxfp8(data, scales, torch.float32)[:out, :width]
    group = next((size for size in (256, 64, 16, 4) if width % size == 0), 0) if kind == "convrot" else 0
    said: dict[str, object] = {"format": "int8_tensorwise"}
    if group:
        data, scale = kitchen.quantize_int8_convrot_weight(weight, group)
        said |= {"convrot": True, "convrot_groupsize": group}
        meaning = kitchen.dequantize_int8_convrot_weight(data, scale, group)
    else:
        rows = kind != "int8"
        data, scale = (kitchen.quantize_int8_rowwise if rows else kitchen.quantize_int8_tensorwise)(weight)
        meaning = kitchen.dequantize_int8_simple(data, scale)
    return {"weight": data, "weight_scale": scale}, said, meaning
