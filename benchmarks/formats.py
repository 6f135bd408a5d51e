"""What each format of small weights costs in exactness: of the weights, of a block of the published width, and of a
clip that the trained miniature makes from a file in that format.

comfy-kitchen and the gguf package round the weights, as they do for the files that people have; the pack reads them.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from a2v.benchmarks.gpu import LARGE, TOY, our_model
from a2v.benchmarks.levels import DEFAULTS, FRAMES, LATENT, PROMPT, TRAINED, miniature, psnr
from a2v.benchmarks.measure import MISSING, Table, say, sides
from a2v.benchmarks.work import contexts, request, sound
from a2v.ltx.diffusion.block import adopt
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, TextContext
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.grid import CHANNELS, video_shape
from a2v.ltx.latents import Noise
from a2v.ltx.weights.formats import stored
from a2v.ltx.weights.gguf import Blocks
from a2v.ltx.weights.quantized import Stored, float8, layer_of, put, to_float8
from a2v.mini import sizes
from a2v.tests import layouts
from safetensors.torch import load_file
from torch import Tensor, nn

KINDS = {
    "fp8, a scale for all values": "float8",
    "fp8, a scale a row": "float8_rows",
    "fp8 E5M2, a scale for all values": "float8_e5m2",
    "int8, a scale for all values": "int8",
    "int8, a scale a row": "int8_rows",
    "int8, rotated (ConvRot)": "convrot",
    "MXFP8": "mxfp8",
    "NVFP4": "nvfp4",
    "GGUF Q8_0": "Q8_0",
    "GGUF Q5_1": "Q5_1",
    "GGUF Q5_0": "Q5_0",
    "GGUF Q4_1": "Q4_1",
    "GGUF Q4_0": "Q4_0",
}
WIDTH = 4096  # of the published model
GGUF = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
SMALLEST = ("MXFP8", "NVFP4")


def encoded(weight: Tensor, kind: str) -> Stored:
    """A weight [out, in] in that format."""
    if kind == "float8":
        return to_float8(weight)
    if kind == "float8_rows":
        scale = weight.abs().amax(1, keepdim=True) / 448
        return float8((weight / scale).to(torch.float8_e4m3fn), scale)
    if kind == "float8_e5m2":
        scale = weight.abs().amax() / torch.finfo(torch.float8_e5m2).max
        return float8((weight / scale).to(torch.float8_e5m2), scale)
    if kind in GGUF:
        import gguf

        data = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
        return Stored(torch.from_numpy(data), weight.shape, Blocks(kind))
    parts, note, _ = layouts.blocks_of(weight, kind)
    return stored(parts["weight"], tuple(weight.shape), parts.get, note)


def off(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@torch.inference_mode()
def changes(model: nn.Module) -> Tensor:
    """What the first block adds to the video's tokens in one pass from pure noise."""
    found: list[Tensor] = []
    hook = model.transformer_blocks[0].register_forward_hook(lambda _, given, made: found.append(made[0] - given[0]))
    width = model.config.num_attention_heads * model.config.attention_head_dim
    video_text, audio_text, *_ = contexts(width, width // 2)
    audio = AudioCondition(sound(TOY.frames), TOY.frames, Fraction(TOY.fps))
    blank = torch.zeros(1, CHANNELS, *video_shape(TOY.frames, TOY.height, TOY.width))
    conditions = Conditions(TextContext(video_text, audio_text), audio)
    sample(model, blank, conditions, Steering(torch.tensor([1.0, 0.0])), Noise(1), device="cpu")
    hook.remove()
    return found[0]


def of_blocks(size: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Format → bits of a value, and the errors of the weights and of what a block of them adds."""
    model = our_model(**size, dtype="float32", device="cpu")
    adopt(model)
    layers = [(n, m) for n, m in model.transformer_blocks.named_modules() if type(m) is nn.Linear]
    exact, found = changes(model), {}
    for name, kind in KINDS.items():
        say(f"  formats, a block: {name}")
        square = total = count = bits = 0.0
        for place, layer in layers:
            whole = encoded(layer.weight.detach(), kind)
            put(model.transformer_blocks, place, layer_of(whole, layer.bias))
            square += float((whole.decode() - layer.weight).square().sum())
            total += float(layer.weight.square().sum())
            count += layer.weight.numel()
            bits += 8 * (whole.data.nbytes + (0 if whole.coding.scales is None else whole.coding.scales.nbytes))
        found[name] = (bits / count, (square / total) ** 0.5, off(changes(model), exact))
        for place, layer in layers:
            put(model.transformer_blocks, place, layer)
    our_model.cache_clear()
    return found


def write(source: Path, target: Path, kind: str) -> None:
    """The miniature in that format, in the layout of the published files."""
    if kind in GGUF:
        layouts.write_gguf(source, target, kind)
    elif kind.startswith("float8"):
        dtype = torch.float8_e5m2 if kind == "float8_e5m2" else torch.float8_e4m3fn
        layouts.write_fp8(source, target, "rows" if kind == "float8_rows" else "scaled_fp8", dtype=dtype)
    else:
        layouts.write_blocks(source, target, kind, spare=False)


def of_clips(folder: Path, steps: int, kinds: dict[str, str]) -> dict[str, tuple[float, float]]:
    """Format → the error of the miniature's final latent, and the frames' distance in dB."""
    paths = miniature(folder)
    whole, values = paths["checkpoint"], {**request(TRAINED, steps, **DEFAULTS), "prompt": PROMPT}
    runs: dict[str, dict[str, Tensor]] = {}
    with sides("ours", log=folder / "sides.log") as (side,):
        for name, kind in {"": "", **kinds}.items():
            say(f"  formats, the miniature: {name or 'as it is'}")
            files, save = dict(paths), str(folder / "clip.safetensors")
            if kind:
                target = folder / f"ltx-2.3-mini-{kind}.{'gguf' if kind in GGUF else 'safetensors'}"
                write(Path(whole), target, kind)
                files["checkpoint"] = str(target)
                if kind in GGUF:
                    files |= dict.fromkeys(("video_vae", "audio_vae", "connectors"), whole)
            side("whole", files=files, values=values, layers=sizes.LAYERS, save=save, names=[LATENT, FRAMES])
            runs[name] = {key: tensor.clone() for key, tensor in load_file(save).items()}
    exact = runs.pop("")
    return {name: (off(run[LATENT], exact[LATENT]), psnr(run[FRAMES], exact[FRAMES])) for name, run in runs.items()}


def formats(folder: Path, small: bool = False) -> Table:
    heads = {"heads": 2, "head_dim": 128} if small else {key: LARGE[key] for key in ("heads", "head_dim")}
    kinds = {name: KINDS[name] for name in SMALLEST} if small else KINDS
    blocks, clips = of_blocks({"layers": 1, **heads}), of_clips(folder, 2 if small else 15, kinds)
    rows, numbers = [], {}
    for name, (bits, weight, block) in blocks.items():
        latent, frames = clips.get(name, (None, None))
        of_clip = (MISSING,) * 2 if latent is None else (f"{latent:.3f}", f"{frames:.1f} dB")
        rows.append((name, f"{bits:.2f}", f"{weight:.4f}", f"{block:.4f}", *of_clip))
        numbers |= {f"{name}: weights": weight, f"{name}: block": block}
        numbers |= {} if latent is None else {f"{name}: latent": latent, f"{name}: frames": frames}
    notes = (
        "Relative L2 against the same weights before they were rounded, computed in float32 on a CPU: of the weights "
        f"of a block that is {heads['heads'] * heads['head_dim']} wide, with normal random weights, and of what it "
        "adds to the video's tokens; then of the final latent that the trained miniature makes in two stages with the "
        f"endpoint's defaults, {TRAINED.width}×{TRAINED.height}×{TRAINED.frames}, and of its frames.",
        "Random weights have no outliers, which rotation and the scales of small blocks are made for, so trained "
        "weights differ more from format to format. The miniature's layers are 128 and 64 wide, so its rotation turns "
        "64 columns and not 256, and each of its 5 blocks counts for more than one of 48. All linear layers of its "
        "blocks are rounded, while the official files leave some blocks in 16 bits.",
        "fp8 is E4M3 where nothing else is said. The K kinds of GGUF (Q6_K to Q2_K) are read, but not measured here, "
        "because the gguf package cannot write them.",
        "These are errors of the weights alone: every format is decoded and multiplied in the model's dtype. Fast "
        "products (`--fast-products`) round the inputs of the layers, too.",
    )
    columns = ("format", "bits a value", "weights", "a block", "the miniature's latent", "its frames, PSNR")
    return Table("Small weights", columns, tuple(rows), notes, numbers)
