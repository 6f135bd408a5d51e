"""NVFP4, MXFP8 and INT8 transformers: they mean what comfy-kitchen makes of them, stay as stored, and take LoRAs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx.memory.rehearsal import blueprint, weights
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.int8 import int8, rotation
from a2v.ltx.weights.mxfp8 import mxfp8, powers
from a2v.ltx.weights.quantized import Branch, QuantizedLinear, ScaledLinear, layer_of
from a2v.tests import layouts
from a2v.tests.ltx.goldens import relative
from a2v.tests.tiny import TinyFiles, write_tiny
from safetensors.torch import save_file
from torch import Tensor, nn

KINDS = ("nvfp4", "mxfp8", "int8", "int8_rows", "convrot")
BITS = {"nvfp4": 4.5, "mxfp8": 8.25, "int8": 8, "int8_rows": 8, "convrot": 8}  # of a value, with the scales of blocks


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """Rows of 512 and 256 values: a rotation has 256."""
    pytest.importorskip("comfy_kitchen")
    sizes = {"layers": 2, "heads": 4, "head_dim": 128, "connector_layers": 1, "vae_width": 4, "gemma_layers": 1}
    return write_tiny(tmp_path_factory.mktemp("wide"), **sizes)


def layers_of(module: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantizedLinear)}


def block(module: nn.Module) -> Tensor:
    """Some of what a block's layers compute."""
    layers, width = module.transformer_blocks[1], module.config.cross_attention_dim
    x = torch.randn(1, 7, width, generator=torch.Generator().manual_seed(5)).to(module.proj_in.weight.dtype)
    x = layers.attn1.to_out[0](layers.attn1.to_q(x))
    return layers.ff.net[2](layers.ff.net[0](x)).float()


NOTED = [(kind, notes) for kind in KINDS for notes in ("tensors", "header", "nowhere")]
NOTED.remove(("convrot", "nowhere"))  # a rotation that no note tells cannot be known


USUAL = ("nvfp4", "convrot")  # of which every note is read in the usual suite, and of the others where it stands mostly


@pytest.mark.parametrize(
    ("kind", "notes"),
    [pytest.param(*each, marks=[pytest.mark.soak] * (each[0] not in USUAL and each[1] != "tensors")) for each in NOTED],
)
def test_a_file_means_what_comfy_kitchen_reads(wide: TinyFiles, tmp_path: Path, kind: str, notes: str) -> None:
    path = tmp_path / "ltx-2.3-22b-dev-quantized.safetensors"
    meaning = layouts.write_blocks(wide.checkpoint, path, kind, notes)
    reference = load_checkpoint(layouts.write_meaning(wide.checkpoint, tmp_path / "f32.safetensors", meaning))
    checkpoint = load_checkpoint(path)
    checkpoint.check()
    model, expected = checkpoint.transformer(torch.float32), reference.transformer(torch.float32)
    found = layers_of(model)
    assert len(found) == len(meaning) > 30 and all(isinstance(layer, ScaledLinear) for layer in found.values())
    # The rotation back is exact here, and rounds in comfy-kitchen, which scales before it adds up 256 values.
    bound = {"rtol": 1e-5, "atol": 1e-7} if kind == "convrot" else {"rtol": 0, "atol": 0}
    for name, layer in found.items():
        torch.testing.assert_close(layer.decoded(), expected.get_submodule(name).weight, **bound, msg=name)
        assert torch.equal(checkpoint.transformer_weight(f"{name}.weight"), layer.decoded())
    torch.testing.assert_close(block(model), block(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_stay_as_stored_and_are_rounded_once(wide: TinyFiles, tmp_path: Path, kind: str) -> None:
    layouts.write_blocks(wide.checkpoint, tmp_path / "q.safetensors", kind)
    exact = layers_of(load_checkpoint(tmp_path / "q.safetensors").transformer(torch.float32))
    half = load_checkpoint(tmp_path / "q.safetensors").transformer(torch.bfloat16)
    assert half.proj_in.weight.dtype == torch.bfloat16
    for name, layer in layers_of(half).items():
        assert torch.equal(layer.decoded(torch.bfloat16), exact[name].decoded().bfloat16()), name
    large = half.transformer_blocks[1].ff.net[0].proj
    bits = 8 * sum(p.nbytes for p in (large.weight, large.weight_scale)) / (large.in_features * large.out_features)
    assert BITS[kind] <= bits < BITS[kind] + 0.2
    told = weights(blueprint(lambda: load_checkpoint(tmp_path / "q.safetensors").transformer(torch.bfloat16)))
    assert told == weights(half), "the forecast counts what is there"


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_in_a_file_of_its_own(wide: TinyFiles, tmp_path: Path, kind: str) -> None:
    """Without a prefix and without a configuration: sizes are measured on what the weights mean."""
    path = tmp_path / "transformer_only.safetensors"
    layouts.write_blocks(wide.checkpoint, path, kind, keep=layouts.transformer_only, strip=layouts.PREFIX)
    tensors, metadata = layouts.read(path)
    save_file(tensors, path, {name: said for name, said in metadata.items() if name != "config"})
    whole = load_checkpoint(wide.checkpoint).transformer(torch.float32)
    alone = load_checkpoint(path).transformer(torch.float32)
    assert {n: m.weight.shape for n, m in whole.named_modules() if isinstance(m, nn.Linear)} == {
        n: torch.Size((m.out_features, m.in_features)) for n, m in alone.named_modules() if isinstance(m, nn.Linear)
    }


def test_prefixes_that_the_header_leaves_out(wide: TinyFiles, tmp_path: Path) -> None:
    """Otherwise a rotated weight would be read as a plain one."""
    layouts.write_blocks(wide.checkpoint, tmp_path / "a.safetensors", "convrot", "header")
    tensors, metadata = layouts.read(tmp_path / "a.safetensors")
    metadata["_quantization_metadata"] = metadata["_quantization_metadata"].replace(layouts.PREFIX, "")
    save_file(tensors, tmp_path / "b.safetensors", metadata)
    first, second = (load_checkpoint(tmp_path / f"{name}.safetensors").transformer() for name in "ab")
    assert torch.equal(block(first), block(second))


@pytest.mark.parametrize("kind", KINDS)
def test_lora_pairs_beside_them(kind: str, randn: Callable) -> None:
    pytest.importorskip("comfy_kitchen")
    q, x = layer(kind, 48, 256), randn(2, 3, 256)
    down, up = randn(2, 256), randn(48, 2)
    q.branches = ((Branch(down, up), 0.5),)
    expected = nn.functional.linear(x, q.decoded() + 0.5 * up @ down, q.bias)
    torch.testing.assert_close(q(x), expected, rtol=1e-5, atol=1e-4)


def layer(kind: str, rows: int, columns: int) -> QuantizedLinear:
    """A layer of random weights, written by comfy-kitchen."""
    from a2v.ltx.weights.formats import stored

    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))
    parts, note, _ = layouts.blocks_of(weight, kind)
    whole = stored(parts["weight"], (rows, columns), parts.get, note)
    return layer_of(whole, nn.Parameter(torch.arange(float(rows)), requires_grad=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 64), (130, 100), (33, 256)])
def test_padding(kind: str, shape: tuple[int, int], randn: Callable) -> None:
    pytest.importorskip("comfy_kitchen")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    ours = layer(kind, *shape)
    assert ours.decoded().shape == shape
    torch.testing.assert_close(ours.decoded(), layouts.blocks_of(weight, kind)[2], rtol=1e-5, atol=1e-6)
    assert relative(ours.decoded(), weight) < 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_compiled(kind: str, randn: Callable) -> None:
    pytest.importorskip("comfy_kitchen")
    module, x = layer(kind, 48, 256), randn(3, 256)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error::UserWarning")
def test_compiled_code_makes_no_table_anew(kind: str, randn: Callable) -> None:
    """A table of values in the graph would be copied to the GPU at each call."""
    pytest.importorskip("comfy_kitchen")
    made = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        made.extend(node.target for node in graph.graph.nodes if node.target in (torch.tensor, torch.kron))
        return graph

    torch._dynamo.reset()
    torch.compile(layer(kind, 48, 256), fullgraph=True, backend=backend)(randn(3, 256))
    assert not made


@pytest.mark.parametrize("kind", KINDS)
def test_a_cast_leaves_the_bytes(kind: str) -> None:
    pytest.importorskip("comfy_kitchen")
    module = nn.Sequential(layer(kind, 48, 256))
    before = module[0].decoded()
    assert torch.equal(module.to(torch.bfloat16).to(torch.float16)[0].decoded(), before)


# Numbers worked out one by one, without comfy-kitchen.


def test_the_rotation() -> None:
    h = rotation(16, torch.device("cpu"))
    four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32)
    for row in range(16):
        for column in range(16):
            assert h[row, column] == four[row // 4, column // 4] * four[row % 4, column % 4]
    assert torch.equal(h @ h, 16 * torch.eye(16)) and torch.equal(h, h.T)


def test_rotated_integers() -> None:
    """The first value of a row is the sum of what the first column of H says, over the root of the group's size."""
    numbers = torch.tensor([[1, 2, 3, 4], [127, -127, 127, -127]], dtype=torch.int8)
    weight = int8(numbers, torch.tensor([[0.5], [2.0]]), 4).decode()
    assert weight.tolist() == [
        [(1 + 2 + 3 - 4) / 4, (1 + 2 - 3 + 4) / 4, (1 - 2 + 3 + 4) / 4, (-1 + 2 + 3 + 4) / 4],
        [254.0, -254.0, 254.0, -254.0],
    ]
    assert int8(numbers, torch.tensor(0.5)).decode()[0].tolist() == [0.5, 1.0, 1.5, 2.0]


def test_powers_of_two() -> None:
    exponents = torch.tensor([0, 1, 126, 127, 128, 254], dtype=torch.uint8)
    assert powers(exponents).tolist() == [2.0**-127, 2.0**-126, 0.5, 1.0, 2.0, 2.0**127]
    numbers = torch.full((32, 64), 1.5).to(torch.float8_e4m3fn)
    scales = torch.full((128, 4), 127, dtype=torch.uint8)
    scales.flatten()[1] = 130  # row 0, second block
    scales.flatten()[16] = 126  # row 1, first block
    weight = mxfp8(numbers, scales, (32, 64)).decode()
    assert weight[0, 31] == 1.5 and weight[0, 32] == 12.0 and weight[1, 0] == 0.75 and weight[1, 32] == 1.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: int8(torch.zeros(4, 8, dtype=torch.int8), torch.ones(3)),
        lambda: int8(torch.zeros(4, 8, dtype=torch.int8), torch.ones(4), 8),
        lambda: int8(torch.zeros(4, 8, dtype=torch.int8), torch.ones(4), 16),
        lambda: int8(torch.zeros(4, 8), torch.ones(4)),
        lambda: mxfp8(torch.zeros(32, 64).to(torch.float8_e4m3fn), torch.zeros(32, 2, dtype=torch.uint8), (32, 64)),
        lambda: mxfp8(torch.zeros(32, 60).to(torch.float8_e4m3fn), torch.zeros(128, 4, dtype=torch.uint8), (32, 60)),
    ],
)
def test_what_does_not_belong_together(make: Callable) -> None:
    with pytest.raises(ValueError, match=r"\(\d+(, \d+)?,?\)"):
        make()
