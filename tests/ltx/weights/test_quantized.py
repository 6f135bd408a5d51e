"""fp8 and GGUF checkpoints: they compute like what their weights mean, stay as stored, and are refused where unread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from a2v.ltx.memory.rehearsal import SMALL, blueprint, weights
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.gguf import Blocks
from a2v.ltx.weights.int8 import int8
from a2v.ltx.weights.quantized import (
    Branch,
    QuantizedLinear,
    ScaledLinear,
    Stored,
    float8,
    floats,
    to_float8,
    weight_shape,
)
from a2v.tests import layouts
from a2v.tests.ltx.goldens import relative
from a2v.tests.tiny import TinyFiles, write_tiny
from safetensors.torch import save_file
from torch import Tensor, nn

KINDS = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """Rows of 512 and 256 values: GGUF's larger blocks hold 256."""
    sizes = {"layers": 2, "heads": 4, "head_dim": 128, "connector_layers": 1, "vae_width": 4, "gemma_layers": 1}
    return write_tiny(tmp_path_factory.mktemp("wide"), **sizes)


def quantized(module: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantizedLinear)}


def decoded(module: nn.Module) -> dict[str, Tensor]:
    state = dict(module.state_dict())
    for name, layer in quantized(module).items():
        state[f"{name}.weight"] = layer.decoded()
        state.pop(f"{name}.weight_scale", None)
    return state


def assert_means(module: nn.Module, reference: nn.Module) -> None:
    """Weight for weight what the reference has."""
    ours, theirs = decoded(module), reference.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name].float(), tensor.float(), rtol=0, atol=0, msg=name)


def block(module: nn.Module) -> Tensor:
    """Some of what a block's layers compute."""
    layers, width = module.transformer_blocks[1], module.config.cross_attention_dim
    x = torch.randn(1, 7, width, generator=torch.Generator().manual_seed(5)).to(module.proj_in.weight.dtype)
    x = layers.attn1.to_out[0](layers.attn1.to_q(x))
    return layers.ff.net[2](layers.ff.net[0](x)).float()


STYLES = ("official", "marked", "scaled_fp8", "plain", "rows")


@pytest.mark.parametrize(
    "style", [pytest.param(style, marks=[pytest.mark.soak] * (style in ("scaled_fp8", "plain"))) for style in STYLES]
)
def test_fp8_file(tiny_default: TinyFiles, tmp_path: Path, style: str) -> None:
    path = tmp_path / "fp8.safetensors"
    meaning = layouts.write_fp8(tiny_default.checkpoint, path, style)
    reference = load_checkpoint(layouts.write_meaning(tiny_default.checkpoint, tmp_path / "f32.safetensors", meaning))
    checkpoint = load_checkpoint(path)
    checkpoint.check()
    model, expected = checkpoint.transformer(torch.float32), reference.transformer(torch.float32)
    assert len(quantized(model)) == len(meaning) > 80
    assert_means(model, expected)
    assert torch.equal(block(model), block(expected))
    half = checkpoint.transformer()  # as stored: what is not fp8 is bfloat16
    assert half.dtype == half.proj_in.weight.dtype == torch.bfloat16
    layer = half.transformer_blocks[2].attn1.to_q
    weight = expected.transformer_blocks[2].attn1.to_q.weight
    assert torch.equal(layer.decoded(torch.bfloat16), weight.bfloat16())  # rounded once
    assert all(q.weight.nbytes == q.in_features * q.out_features for q in quantized(half).values())
    scales = [q.weight_scale.view(torch.float32) for q in quantized(half).values() if isinstance(q, ScaledLinear)]
    assert len(scales) == (len(meaning) if style == "rows" else 0), "a scale per row moves with its layer"
    assert torch.equal(checkpoint.transformer_weight("proj_in.weight"), half.proj_in.weight)
    for part in ("connectors", "video_vae", "audio_vae", "vocoder"):
        assert_means(getattr(checkpoint, part)(), getattr(reference, part)())


@pytest.mark.soak
def test_fp8_elsewhere_is_decoded(tiny_default: TinyFiles, tmp_path: Path) -> None:
    """A file cast whole: only linear layers compute from fp8, and what the sampler asks for the dtype does not."""
    tensors, metadata = layouts.read(tiny_default.checkpoint)
    save_file({k: t.to(torch.float8_e4m3fn) for k, t in tensors.items()}, tmp_path / "cast.safetensors", metadata)
    checkpoint = load_checkpoint(tmp_path / "cast.safetensors")
    for part in ("transformer", "connectors", "video_vae", "audio_vae", "vocoder"):
        module, before = (
            getattr(c, part)(torch.bfloat16) for c in (checkpoint, load_checkpoint(tiny_default.checkpoint))
        )
        stored = before.state_dict()
        for name, tensor in decoded(module).items():
            value = stored[name].to(torch.float8_e4m3fn).float()
            assert torch.equal(tensor.float(), value), name
        assert all(p.dtype == torch.bfloat16 for p in module.parameters() if p.is_floating_point())
    assert "proj_in" not in quantized(checkpoint.transformer())
    assert not quantized(checkpoint.video_vae())


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.soak] * (kind not in ("Q8_0", "Q5_0", "Q4_K"))) for kind in KINDS]
)
def test_gguf_file(wide: TinyFiles, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "LTX-2.3-dev.gguf"
    meaning = layouts.write_gguf(wide.checkpoint, path, kind, strip=layouts.PREFIX if kind != "Q4_K" else "")
    reference = load_checkpoint(layouts.write_meaning(wide.checkpoint, tmp_path / "f32.safetensors", meaning))
    model, expected = load_checkpoint(path).transformer(torch.float32), reference.transformer(torch.float32)
    layers = quantized(model)
    assert {layer.coding.kind for layer in layers.values()} == {kind} and len(layers) > 60
    assert_means(model, expected)
    assert torch.equal(block(model), block(expected))
    half = load_checkpoint(path).transformer(torch.bfloat16)
    assert half.proj_in.weight.dtype == torch.bfloat16
    name = next(iter(quantized(half)))
    assert torch.equal(quantized(half)[name].decoded(torch.bfloat16), expected.get_submodule(name).weight.bfloat16())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_gguf_of_floats(wide: TinyFiles, tmp_path: Path, kind: str) -> None:
    meaning = layouts.write_gguf(wide.checkpoint, tmp_path / "f.gguf", kind)
    reference = load_checkpoint(layouts.write_meaning(wide.checkpoint, tmp_path / "f32.safetensors", meaning))
    model = load_checkpoint(tmp_path / "f.gguf").transformer(torch.float32)
    assert not quantized(model)
    assert_means(model, reference.transformer(torch.float32))


@pytest.mark.parametrize("kind", [*KINDS, "IQ4_NL", "IQ4_XS"])
def test_gguf_blocks(kind: str) -> None:
    """Against the gguf package's own decoder; of one kind more blocks than are decoded at once."""
    length, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = np.random.default_rng(1).integers(
        0, 256, (300, 100 if kind == "IQ4_XS" else 3200 // length, size), dtype=np.uint8
    )
    for scales in (blocks[..., :4], blocks[..., -4:]):  # they stand at one of the ends, and are no NaN
        scales[:] = np.tile(np.array([0.01], np.float16).view(np.uint8), 2)
    expected = gguf.quants.dequantize(blocks.reshape(300, -1), gguf.GGMLQuantizationType[kind])
    ours = Blocks(kind).decode(torch.from_numpy(blocks.reshape(300, -1)), torch.float32)
    torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=1e-6, atol=0)


def test_a_gguf_file_that_was_opened_before_can_be_rehearsed(wide: TinyFiles, tmp_path: Path) -> None:
    """A forecast opens it outside of inference mode and rehearses it inside."""
    layouts.write_gguf(wide.checkpoint, path := tmp_path / "q.gguf", "Q8_0")
    assert path.stat().st_size > SMALL
    opened = load_checkpoint(path)
    assert weights(blueprint(opened.transformer)) == weights(opened.transformer())


def test_gguf_maps_the_file(wide: TinyFiles, tmp_path: Path) -> None:
    """Quantized weights of one load lie in one mapping, as far apart as in the file."""
    layouts.write_gguf(wide.checkpoint, tmp_path / "q8.gguf", "Q8_0")
    places = {t.name: int(t.data_offset) for t in gguf.GGUFReader(tmp_path / "q8.gguf").tensors}
    layers = load_checkpoint(tmp_path / "q8.gguf").transformer(torch.bfloat16).transformer_blocks
    names = [f"transformer_blocks.{i}.attn1.to_q.weight" for i in (0, 1)]
    apart = layers[1].attn1.to_q.weight.data_ptr() - layers[0].attn1.to_q.weight.data_ptr()
    assert apart == places[names[1]] - places[names[0]]


def test_gguf_of_another_shape(tmp_path: Path) -> None:
    """City96's converter writes the shape of what it flattened beside it."""
    from a2v.ltx.weights.gguf import GgufFile

    writer = gguf.GGUFWriter(tmp_path / "s.gguf", "ltxv")
    values = np.arange(128, dtype=np.float32).reshape(2, 64)
    writer.add_array("comfy.gguf.orig_shape.x", [2, 2, 32])
    writer.add_tensor(
        "x", gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    stored = GgufFile(tmp_path / "s.gguf").get("x")
    assert stored.shape == stored.decode().shape == (2, 2, 32)
    torch.testing.assert_close(stored.decode().flatten(), torch.arange(128.0), rtol=0, atol=0.5)


@pytest.mark.parametrize("fault", ["none", "empty", "no gguf", "cut", "header", "text", "no values", "IQ2_XS"])
def test_gguf_files_that_are_refused(wide: TinyFiles, tmp_path: Path, fault: str, refusal: Callable) -> None:
    whole = tmp_path / "whole.gguf"
    path = tmp_path / "bad.gguf"
    layouts.write_gguf(wide.checkpoint, whole, "Q8_0")
    content = whole.read_bytes()
    if fault == "IQ2_XS":
        kind = gguf.GGMLQuantizationType.IQ2_XS
        writer = gguf.GGUFWriter(path, "ltxv")
        writer.add_tensor("x", np.zeros((2, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    elif fault != "none":
        bad = {"empty": b"", "no gguf": b"no gguf " * 99, "cut": content[:-5000], "header": content[:3000]}
        bad["text"] = content.replace(b'"transformer"', b'"\xffransformer"')
        name = b"transformer_blocks.0.ff.net.2.weight"
        sizes = content.index(name) + len(name) + 4  # behind the number of dimensions
        bad["no values"] = content[:sizes] + bytes(8) + content[sizes + 8 :]
        path.write_bytes(bad[fault])
    with refusal(path, *(["IQ2_XS", "Q8_0"] if fault == "IQ2_XS" else [])):
        load_checkpoint(path)


@pytest.mark.parametrize("fault", ["nvfp4", "mxfp8", "blocks"])
def test_scales_that_do_not_fit_are_refused(
    tiny_default: TinyFiles, tmp_path: Path, fault: str, refusal: Callable
) -> None:
    tensors, metadata = layouts.read(tiny_default.checkpoint)
    layer = layouts.PREFIX + "transformer_blocks.1.ff.net.2"
    shape = tensors[layer + ".weight"].shape
    if fault == "nvfp4":
        tensors[layer + ".weight"] = torch.zeros(shape[0], shape[1] // 2, dtype=torch.uint8)
        tensors[layer + ".weight_scale"] = torch.zeros(shape[0] - 1, shape[1] // 16, dtype=torch.float8_e4m3fn)
        tensors[layer + ".weight_scale_2"] = torch.ones(())
    else:
        tensors[layer + ".weight"] = tensors[layer + ".weight"].to(torch.float8_e4m3fn)
        scale = torch.ones(shape[0], shape[1] // 32)
        tensors[layer + ".weight_scale"] = scale.to(torch.uint8) if fault == "mxfp8" else scale
    save_file(tensors, tmp_path / "q.safetensors", metadata)
    with refusal(tmp_path / "q.safetensors"):
        load_checkpoint(tmp_path / "q.safetensors").transformer()


SCALED = {"fp8": "fp8", "int8": "int8", "nvfp4": "nvfp4", "nvfp4 whole": "nvfp4", "mxfp8": "mxfp8"}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_told_when_the_file_is_loaded(
    wide: TinyFiles, tmp_path: Path, kind: str, number: float, refusal: Callable
) -> None:
    if kind != "fp8":
        pytest.importorskip("comfy_kitchen")
    path, wanted = tmp_path / "q.safetensors", "transformer_blocks.1.ff.net.2.weight"
    if kind == "fp8":
        layouts.write_fp8(wide.checkpoint, path)
    else:
        layouts.write_blocks(wide.checkpoint, path, SCALED[kind], "tensors")
    tensors, metadata = layouts.read(path)
    key = next(key for key in tensors if key.endswith(f"{wanted}_scale_2" if "whole" in kind else f"{wanted}_scale"))
    scale = tensors[key]
    load_checkpoint(path).transformer(torch.float32)
    if scale.element_size() == 1:
        scale.view(torch.uint8).flatten()[5] = 0xFF if kind == "mxfp8" or number > 0 else 0x7F
    else:
        scale.view(-1)[-1] = number
    save_file(tensors, path, metadata)
    with refusal(path, wanted, "a scale that is NaN or infinite"):
        load_checkpoint(path).transformer(torch.float32)


# fp8 made from a bfloat16 file.


def test_fp8_on_the_fly(tiny_default: TinyFiles) -> None:
    checkpoint = load_checkpoint(tiny_default.checkpoint)
    plain, model = checkpoint.transformer(torch.float32), checkpoint.transformer(torch.float32, fp8=True)
    layers = quantized(model)
    linear = [n for n, m in plain.named_modules() if isinstance(m, nn.Linear) and n.startswith("transformer_blocks.")]
    assert list(layers) == linear and model.proj_in.weight.dtype == torch.float32
    for name, layer in layers.items():
        weight = plain.get_submodule(name).weight
        assert layer.weight.nbytes == weight.numel()
        error = (layer.decoded() - weight).abs()
        # Half a step of three bits of mantissa, or of the smallest number the format has.
        assert (error <= torch.maximum(weight.abs() / 16, weight.abs().max() / 448 * 2**-10) * 1.001).all(), name
    assert 0 < relative(block(model), block(plain)) < 0.08


def test_a_scale_is_closer_than_a_cast() -> None:
    """Why on-the-fly fp8 has a scale, and one for the whole weight."""
    weight = 0.02 * torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    scaled, cast = to_float8(weight).decode(), weight.to(torch.float8_e4m3fn).float()
    errors = [relative(w, weight) for w in (scaled, cast)]
    assert errors[0] < 0.028 < 0.031 < errors[1]


def test_zero_weights() -> None:
    assert torch.equal(to_float8(torch.zeros(3, 4)).decode(), torch.zeros(3, 4))


# The layer.


def layer() -> QuantizedLinear:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
    return QuantizedLinear(to_float8(weight), nn.Parameter(torch.arange(6.0), requires_grad=False))


def test_casting_the_module_leaves_the_bytes(randn: Callable) -> None:
    module = nn.Sequential(layer())
    stored, exact = module[0].weight.clone(), module[0].decoded()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        module.to(dtype)
        assert module[0].bias.dtype == dtype and module[0].weight.dtype == torch.uint8
        assert torch.equal(module[0].weight, stored) and torch.equal(module[0].decoded(), exact)
        x = randn(2, 3, 8).to(dtype)
        assert torch.equal(module(x), nn.functional.linear(x, exact.to(dtype), module[0].bias))


def test_branches(randn: Callable) -> None:
    q, x = layer(), randn(2, 3, 8)
    down, up = randn(2, 8), randn(6, 2).bfloat16()
    q.branches = ((Branch(down, up), 0.5), (Branch(2 * down, up), -1.0))
    expected = nn.functional.linear(x, q.decoded() + 0.5 * up.float() @ down - 2.0 * up.float() @ down, q.bias)
    torch.testing.assert_close(q(x), expected, rtol=1e-5, atol=1e-5)
    assert set(q.state_dict()) == {"weight", "bias"}


def test_scales_of_other_shapes() -> None:
    weight = torch.zeros(4, 8, dtype=torch.float8_e4m3fn)
    for shape in ((2,), (8,), (4, 2)):
        with pytest.raises(ValueError, match="scale of shape"):
            float8(weight, torch.ones(shape))


@pytest.mark.parametrize("join", [float8, int8])
def test_a_scale_for_columns_is_not_taken_for_rows(join: Callable) -> None:
    """Of a square weight, both have as many numbers."""
    weight = torch.ones(4, 4, dtype=torch.float8_e4m3fn if join is float8 else torch.int8)
    scales = torch.tensor([1.0, 2.0, 4.0, 8.0])
    for scale in (scales, scales[:, None]):
        assert torch.equal(join(weight, scale).decode(), scales[:, None].expand(4, 4))
    with pytest.raises(ValueError, match=r"scale of shape \(1, 4\)"):
        join(weight, scales[None])


def test_weight_shape(wide: TinyFiles, tmp_path: Path) -> None:
    layouts.write_gguf(wide.checkpoint, tmp_path / "q.gguf", "Q4_0")
    model, plain = load_checkpoint(tmp_path / "q.gguf").transformer(), load_checkpoint(wide.checkpoint).blueprint()
    for name, parameter in plain.named_parameters():
        assert weight_shape(model, name) == parameter.shape, name
    assert weight_shape(model, "transformer_blocks.9.attn1.to_q.weight") is None
    assert weight_shape(model, "proj_in.other") is None


def test_compiled(randn: Callable) -> None:
    """In one graph, as the repeated blocks are compiled, for both kinds of storage."""
    blocks = np.random.default_rng(3).integers(0, 256, (16, 34), dtype=np.uint8)
    blocks[:, :2] = np.array([0.01], np.float16).view(np.uint8)
    data = torch.from_numpy(blocks.reshape(8, 68))
    rows = QuantizedLinear(Stored(data, torch.Size((8, 64)), Blocks("Q8_0")), None)
    for module, width in ((layer(), 8), (rows, 64)):
        module.branches = ((Branch(randn(2, width), randn(module.out_features, 2)), 0.3),)
        x = randn(3, width)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "later"), [("cuda", True), ("xpu", True), ("mps", False), ("cpu", False)])
def test_scales_are_copied_as_the_device_allows(kind: str, later: bool) -> None:
    """A copy to an Apple GPU that goes on by itself may read memory that the host has given back."""
    asked = []

    def to(device: torch.device, non_blocking: bool) -> Tensor:
        asked.append((device.type, non_blocking))
        return torch.zeros(4)

    floats(SimpleNamespace(to=to), torch.device(kind))
    assert asked == [(kind, later)]
