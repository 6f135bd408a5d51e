"""Kinds of LoRA files, each against its formula in double precision: names, alpha, scaled tensors, changes of a weight.

The formulas are written out here, from the papers, and do not call the pack.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.lora import Lora, Merger, applied, load_lora, match
from a2v.ltx.weights.names import OF_CONNECTORS, Names
from a2v.ltx.weights.quantized import QuantizedLinear, to_float8
from a2v.tests import layouts
from a2v.tests.tiny import TinyFiles
from diffusers import LTX2VideoTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

OUT, IN, RANK = 12, 8, 3
LAYER = "diffusion_model.transformer_blocks.0.attn1.to_q"
WEIGHT, BIAS = "transformer_blocks.0.attn1.to_q.weight", "transformer_blocks.0.attn1.to_q.bias"
Tensors = dict[str, Tensor]
Write = Callable[..., Path]


class Model(nn.Module):
    """Layers under diffusers' names of the transformer, and one parameter of a block."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        block = nn.Module()
        block.attn1 = nn.ModuleDict({"to_q": nn.Linear(IN, OUT)})
        block.scale_shift_table = nn.Parameter(torch.zeros(6, IN))
        self.transformer_blocks = nn.ModuleList([block])
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.requires_grad_(False)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A second file of a name is in another folder: Windows replaces none that is still mapped."""
    folders = (tmp_path / str(number) for number in count())

    def write(tensors: Tensors, metadata: dict[str, str] | None = None, name: str = "lora.safetensors") -> Path:
        path = tmp_path / name
        if path.exists():
            path = next(folders) / name
            path.parent.mkdir()
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata)
        return path

    return write


def pair(layer: str = LAYER) -> Tensors:
    return {f"{layer}.lora_A.weight": noise(RANK, IN), f"{layer}.lora_B.weight": noise(OUT, RANK)}


PRODUCT = noise(OUT, RANK).double() @ noise(RANK, IN).double()


def changed(lora: Lora, strength: float = 1.0, model: nn.Module | None = None) -> Tensors:
    """Every parameter of the model with the LoRA, in double precision."""
    model = model or Model()
    original = {name: parameter.data for name, parameter in model.named_parameters()}
    with applied(model, [(lora, strength)], original.__getitem__):
        return {name: parameter.double() for name, parameter in model.named_parameters()}


def assert_change(lora: Lora, change: Callable[[Tensor], Tensor] | Tensor, name: str = WEIGHT) -> None:
    """At strengths 1 and -0.7, on the plain weight and, for a matrix, beside a quantized one."""
    weight = Model().get_parameter(name).double()
    for strength in (1.0, -0.7):
        expected = weight + strength * (change(weight) if callable(change) else change)
        found = changed(lora, strength)
        torch.testing.assert_close(found.pop(name), expected, rtol=1e-5, atol=1e-5)
        plain = Model()
        assert all(torch.equal(tensor, plain.get_parameter(other).double()) for other, tensor in found.items())
    if name != WEIGHT:
        return
    model = Model()
    stored = to_float8(weight.float())
    layer = model.transformer_blocks[0].attn1.to_q = QuantizedLinear(
        stored, model.transformer_blocks[0].attn1.to_q.bias
    )
    decoded, x = stored.decode().double(), noise(5, IN)
    merger = Merger(model, lambda name: stored.decode())
    for strength in (1.0, -0.7):
        merger.set([(lora, strength)])
        expected = decoded + strength * (change(decoded) if callable(change) else change)
        y = x.double() @ expected.T + layer.bias.double()
        torch.testing.assert_close(layer(x).double(), y, rtol=1e-5, atol=1e-4)
    merger.set([])
    assert torch.equal(layer(x), QuantizedLinear(stored, layer.bias)(x)) and torch.equal(layer.weight, stored.data)


@pytest.fixture(scope="module")
def transformer(tiny_default: TinyFiles) -> LTX2VideoTransformer3DModel:
    return load_checkpoint(tiny_default.checkpoint).blueprint()


PREFIXES = (
    *("", "diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model.", "pipe.dit.", "unet."),
    *("model.transformer.", "module.", "module.model.", "_orig_mod.", "base_model.model.transformer.", "my.trainer."),
)
FLAT = ("lora_unet_", "lora_unet_model_", "lycoris_", "lora_transformer_", "lora_unet__", "trainer_")


@pytest.mark.parametrize("prefix", [*PREFIXES, *FLAT])
def test_every_layer_of_the_model_under_every_prefix(
    tiny_default: TinyFiles, transformer: nn.Module, prefix: str
) -> None:
    """Original names and diffusers' names, with dots or underscores."""
    table = Names(transformer)
    original = {
        key.removeprefix(layouts.PREFIX).removesuffix(".weight"): None
        for key in load_file(tiny_default.checkpoint)
        if layouts.transformer_only(key) and key.endswith(".weight")
    }
    theirs = [n.removesuffix(".weight") for n, _ in transformer.named_parameters() if n.endswith(".weight")]
    assert len(original) == len(theirs) > 150
    for names in (original, theirs):
        spelled = [prefix + (name.replace(".", "_") if prefix in FLAT else name) for name in names]
        found = table.resolve(spelled)
        assert list(found) == spelled and all(len(owners) == 1 for owners in found.values())
        assert {owner for owners in found.values() for owner in owners} == set(theirs)


def test_names_of_other_models_mean_nothing(transformer: nn.Module) -> None:
    table = Names(transformer)
    others = [
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "text_encoder.model.layers.0.proj_out",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "diffusion_model.transformer_blocks.99.attn1.to_q",
        "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q",
    ]
    assert table.resolve(others) == {}
    assert table.resolve([*others, "unet.proj_out"]) == {"unet.proj_out": {"proj_out"}}


def test_names_of_the_connectors(tiny_default: TinyFiles, transformer: nn.Module) -> None:
    connectors = load_checkpoint(tiny_default.checkpoint).connectors()
    wanted = {name.removesuffix(".weight") for name, _ in connectors.named_parameters() if name.endswith(".weight")}
    keys = [k.removesuffix(".weight") for k in load_file(tiny_default.checkpoint) if k.endswith(".weight")]
    original = [key for key in keys if key.startswith((*layouts.CONNECTORS, layouts.PROJECTION))]
    flat = ["lora_unet_" + key.removeprefix(layouts.PREFIX).replace(".", "_") for key in original]
    for names in (
        original,
        flat,
        [name.replace("_video_embeddings", "_embeddings") for name in flat],  # as musubi-tuner has them
        [f"connectors.{name}" for name in sorted(wanted)],
        [f"text_encoders.{n}" for n in wanted],
    ):
        assert all(map(OF_CONNECTORS.search, names))
        assert {owner for owners in Names(connectors).resolve(names).values() for owner in owners} == wanted
        assert Names(transformer).resolve(names) == {}
    assert not any(OF_CONNECTORS.search(name) for name, _ in transformer.named_parameters())


def test_an_ambiguous_name_is_refused(write: Write) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x_y, self.x = nn.Linear(IN, OUT), nn.ModuleDict({"y": nn.Linear(IN, OUT)})

    with pytest.raises(InputError, match=r"lora_unet_x_y may mean x\.y or x_y; use a copy"):
        match(load_lora(write(pair("lora_unet_x_y"))), Twice())
    assert match(load_lora(write(pair("unet.x.y"))), Twice()).matched == ("x.y.weight",)
    assert match(load_lora(write(pair("unet.x_y"))), Twice()).matched == ("x_y.weight",)


METADATA = [  # (entries, alpha / rank of the layer)
    ({"transformer.r": 3, "transformer.lora_alpha": 12}, 4.0),
    ({"r": 3, "lora_alpha": 1.5}, 0.5),
    ({"transformer.lora_alpha": 12, "text_encoder.lora_alpha": 99}, 4.0),
    ({"transformer.lora_alpha": 6, "transformer.use_rslora": True}, 6 / math.sqrt(3)),
    ({"transformer.lora_alpha": 1, "transformer.alpha_pattern": {"blocks.1.to_q": 5, "attn1.to_q": 9}}, 3.0),
    ({"transformer.lora_alpha": 3, "transformer.alpha_pattern": {r"^transformer_blocks\.0\.attn1\.to_q$": 9}}, 3.0),
    ({"transformer.lora_alpha": 3, "transformer.alpha_pattern": {"q": 9}, "transformer.rank_pattern": {"q": 1}}, 1.0),
    ({"transformer.r": 3}, 1.0),
]


@pytest.mark.parametrize(("entries", "factor"), METADATA)
def test_alpha_in_the_metadata(write: Write, entries: dict, factor: float) -> None:
    """As diffusers writes it, and as peft names it."""
    tensors = pair(LAYER.replace("diffusion_model", "transformer"))
    lora = load_lora(write(tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(entries)}))
    assert_change(lora, factor * PRODUCT)


def test_alpha_beside_the_layer_counts_before_the_metadata(write: Write) -> None:
    tensors = {**pair(), f"{LAYER}.alpha": torch.tensor(6.0)}
    lora = load_lora(write(tensors, {"lora_adapter_metadata": '{"transformer.lora_alpha": 99}'}))
    assert_change(lora, 2.0 * PRODUCT)


def test_alpha_in_pefts_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 24}')
    tensors = pair("base_model.model.transformer_blocks.0.attn1.to_q")
    assert_change(load_lora(write(tensors, name="adapter_model.safetensors")), 8.0 * PRODUCT)
    assert_change(load_lora(write(tensors, name="other.safetensors")), PRODUCT)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"lora_alpha": "x"}', "lora_alpha 'x' is not read"),
        ('{"lora_alpha": NaN}', "lora_alpha nan is not read"),
        ('{"lora_alpha": 1, "alpha_pattern": {"(a+)+$": 2}}', "alpha_pattern"),
        ('{"lora_alpha": 1, "alpha_pattern": [1]}', "alpha_pattern"),
    ],
)
def test_metadata_that_is_not_read_is_refused(write: Write, refusal: Callable, text: str, words: str) -> None:
    path = write(pair(), {"lora_adapter_metadata": text})
    with refusal(path, words):
        load_lora(path)


def quantized(tensor: Tensor, dtype: torch.dtype, rows: bool) -> tuple[Tensor, Tensor]:
    top = 127 if dtype == torch.int8 else 448
    scale = (tensor.abs().amax(1, keepdim=True) if rows else tensor.abs().amax()) / top
    values = tensor / scale
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("ending", [".weight_scale", ".scale_weight", ".weight.weight_scale"])
def test_scaled_tensors(write: Write, dtype: torch.dtype, rows: bool, ending: str) -> None:
    """The scale beside each half counts, as one number or for each row."""
    if ending == ".weight.weight_scale":
        ending = ".weight_scale"
        marks = {f"{LAYER}.lora_{half}.comfy_quant": torch.zeros(3, dtype=torch.uint8) for half in "AB"}
    else:
        marks = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    tensors: Tensors = {**marks, f"{LAYER}.alpha": torch.tensor(1.5)}
    halves = []
    for half, value in (("A", noise(RANK, IN)), ("B", noise(OUT, RANK))):
        stored, scale = quantized(value, dtype, rows)
        tensors |= {f"{LAYER}.lora_{half}.weight": stored, f"{LAYER}.lora_{half}{ending}": scale}
        halves.append(stored.double() * scale.double())
    lora = load_lora(write(tensors))
    assert lora.unread == {}
    assert_change(lora, 0.5 * halves[1] @ halves[0])


def test_a_scale_for_columns_is_not_taken_for_rows(write: Write, refusal: Callable) -> None:
    tensors = {**pair(), f"{LAYER}.lora_A.weight_scale": torch.ones(1, RANK)}
    tensors[f"{LAYER}.lora_A.weight"] = torch.ones(RANK, IN, dtype=torch.int8)
    path = write(tensors)
    with refusal(path, f"stored with a scale of shape (1, {RANK})"):
        load_lora(path)


def test_fp8_without_a_scale_means_its_values(write: Write) -> None:
    tensors = {key: value.to(torch.float8_e4m3fn) for key, value in pair().items()}
    down, up = (tensors[f"{LAYER}.lora_{half}.weight"].double() for half in "AB")
    assert_change(load_lora(write(tensors)), up @ down)


def test_a_layer_of_rank_0_is_left_out(write: Write, refusal: Callable) -> None:
    empty = {"proj_in.lora_A.weight": torch.zeros(0, IN), "proj_in.lora_B.weight": torch.zeros(OUT, 0)}
    lora = load_lora(write({**pair(), **empty, "proj_in.alpha": torch.tensor(4.0)}))
    fit = match(lora, Model())
    assert fit.warning == (
        "lora.safetensors: 1 layers applied, 1 left out, e.g. proj_in: of rank 0, so it changes nothing."
    )
    assert_change(lora, PRODUCT)
    path = write(empty)
    with refusal(path, "of rank 0"):
        load_lora(path)


def dora(change: Tensor, magnitude: Tensor) -> Callable[[Tensor], Tensor]:
    def to(weight: Tensor) -> Tensor:
        whole = weight + change
        axis = 0 if magnitude.shape == (1, IN) else 1
        return (
            magnitude.double().view(*((1, -1) if axis == 0 else (-1, 1))) * whole / whole.norm(dim=axis, keepdim=True)
            - weight
        )

    return to


MAGNITUDES = [
    (".dora_scale", (OUT, 1)),
    (".dora_scale", (1, IN)),
    (".lora_magnitude_vector", (OUT,)),
    (".lora_magnitude_vector.weight", (OUT,)),
    (".lora_magnitude_vector.default.weight", (OUT,)),
]


@pytest.mark.parametrize(("ending", "shape"), MAGNITUDES)
def test_dora(write: Write, ending: str, shape: tuple[int, ...]) -> None:
    """magnitude * V / |V|, V = W + alpha / rank * B A (arXiv:2402.09353, equation 5)."""
    magnitude = 2 + noise(*shape)
    lora = load_lora(write({**pair(), LAYER + ending: magnitude, f"{LAYER}.alpha": torch.tensor(6.0)}))
    assert match(lora, Model()).kinds == {"DoRA": 1}
    assert_change(lora, dora(2.0 * PRODUCT, magnitude))


def test_loha_and_lokr(write: Write) -> None:
    """LyCORIS (arXiv:2309.14859): (B1 A1) * (B2 A2) value by value; the Kronecker product of C and D."""
    alpha = {f"{LAYER}.alpha": torch.tensor(6.0)}
    loha = {
        f"{LAYER}.hada_w{n}_{h}": 0.5 * noise(*s) + 0.1 * n
        for n in (1, 2)
        for h, s in (("a", (OUT, RANK)), ("b", (RANK, IN)))
    }
    one, two = (loha[f"{LAYER}.hada_w{n}_a"].double() @ loha[f"{LAYER}.hada_w{n}_b"].double() for n in (1, 2))
    lora = load_lora(write({**loha, **alpha}))
    assert match(lora, Model()).kinds == {"LoHa": 1}
    assert_change(lora, 2 * one * two)
    assert_change(load_lora(write(loha)), one * two)
    small, up, down = noise(3, 2), noise(4, RANK), noise(RANK, 4)
    products = {f"{LAYER}.lokr_w1": small, f"{LAYER}.lokr_w2_a": up, f"{LAYER}.lokr_w2_b": down}
    whole = torch.kron(small.double(), up.double() @ down.double())
    lora = load_lora(write({**products, **alpha}))
    assert match(lora, Model()).kinds == {"LoKr": 1}
    assert_change(lora, 2 * whole)
    assert_change(load_lora(write(products)), whole)
    # alpha scales no LoKr of two whole matrices; LyCORIS writes any number there
    both = {f"{LAYER}.lokr_w1": small, f"{LAYER}.lokr_w2": noise(4, 4)}
    assert_change(load_lora(write({**both, **alpha})), torch.kron(small.double(), noise(4, 4).double()))
    turned = {f"{LAYER}.lokr_w1_a": noise(3, 1), f"{LAYER}.lokr_w1_b": noise(1, 2), f"{LAYER}.lokr_w2": noise(4, 4)}
    first = noise(3, 1).double() @ noise(1, 2).double()
    assert_change(load_lora(write({**turned, **alpha})), 6 * torch.kron(first, noise(4, 4).double()))


def test_dora_of_other_kinds(write: Write) -> None:
    both = {f"{LAYER}.lokr_w1": noise(3, 2), f"{LAYER}.lokr_w2": noise(4, 4), f"{LAYER}.dora_scale": 2 + noise(OUT, 1)}
    assert_change(
        load_lora(write(both)), dora(torch.kron(noise(3, 2).double(), noise(4, 4).double()), 2 + noise(OUT, 1))
    )


def test_norms_of_the_model_beside_a_change_are_passed_over(write: Write) -> None:
    """musubi-tuner writes them beside DoRA of LoKr."""
    loha = {f"{LAYER}.lokr_w1": noise(2, 2), f"{LAYER}.lokr_w2": noise(OUT // 2, IN // 2)}
    fit = match(load_lora(write({**loha, f"{LAYER}.initial_norm": noise(OUT, 1)})), Model())
    assert fit.warning is None and fit.kinds == {"LoKr": 1}


def test_full_differences_and_new_values(write: Write) -> None:
    assert_change(load_lora(write({f"{LAYER}.diff": noise(OUT, IN)})), noise(OUT, IN).double())
    assert_change(load_lora(write({f"{LAYER}.diff_b": noise(OUT)})), noise(OUT).double(), BIAS)
    assert_change(
        load_lora(write({f"{LAYER}.set_weight": noise(OUT, IN)})), lambda weight: noise(OUT, IN).double() - weight
    )
    table = "transformer_blocks.0.scale_shift_table"
    assert_change(load_lora(write({f"diffusion_model.{table}.diff": noise(6, IN)})), noise(6, IN).double(), table)
    bias = {**pair(), f"{LAYER}.lora_B.bias": noise(OUT), f"{LAYER}.alpha": torch.tensor(6.0)}  # peft's lora_bias
    fit = match(load_lora(write(bias)), Model())
    assert fit.kinds == {"LoRA": 1, "full difference": 1}
    assert fit.told() == "all of its 1 layers applied (1 LoRA, 1 full difference)"
    found = changed(load_lora(write(bias)))[BIAS]
    torch.testing.assert_close(found, Model().get_parameter(BIAS).double() + 2 * noise(OUT).double())


def test_kinds_add_up_from_the_checkpoints_own_weight(write: Write) -> None:
    """Two files: the order does not matter, and DoRA does not see the other's change."""
    plain = load_lora(write(pair(), name="plain.safetensors"))
    magnitude = 2 + noise(OUT, 1)
    other = load_lora(write({**pair(), f"{LAYER}.dora_scale": magnitude}, name="dora.safetensors"))
    model = Model()
    original = {name: parameter.data for name, parameter in model.named_parameters()}
    merger, weight = Merger(model, original.__getitem__), original[WEIGHT].double()
    expected = weight + 0.5 * PRODUCT - 0.3 * dora(PRODUCT, magnitude)(weight)
    for loras in ([(plain, 0.5), (other, -0.3)], [(other, -0.3), (plain, 0.5)]):
        merger.set(loras)
        torch.testing.assert_close(model.get_parameter(WEIGHT).double(), expected, rtol=1e-5, atol=1e-5)
    merger.set([])
    assert torch.equal(model.get_parameter(WEIGHT), original[WEIGHT])


@pytest.mark.parametrize("layout", ["fp8", "gguf"])
def test_every_kind_on_a_quantized_checkpoint(
    tiny_default: TinyFiles, write: Write, tmp_path: Path, layout: str
) -> None:
    """DoRA's norms are those of the decoded weights; the stored bytes do not change."""
    file = tmp_path / ("q.gguf" if layout == "gguf" else "q.safetensors")
    if layout == "gguf":
        layouts.write_gguf(tiny_default.checkpoint, file, "Q8_0")
    else:
        layouts.write_fp8(tiny_default.checkpoint, file, "rows")
    checkpoint = load_checkpoint(file)
    model = checkpoint.transformer(torch.float32)
    layer = model.transformer_blocks[1].attn1.to_q
    assert isinstance(layer, QuantizedLinear)
    out, width = layer.out_features, layer.in_features
    key = LAYER.replace("0", "1")
    down, up, magnitude = noise(2, width), 0.1 * noise(out, 2), 1 + noise(out, 1)
    path = write({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.dora_scale": magnitude})
    weight = checkpoint.transformer_weight("transformer_blocks.1.attn1.to_q.weight").double()
    whole = weight + up.double() @ down.double()
    wanted = weight + 0.5 * (magnitude.double() * whole / whole.norm(dim=1, keepdim=True) - weight)
    before, x = layer.weight.clone(), noise(3, width)
    with applied(model, [(load_lora(path), 0.5)], checkpoint.transformer_weight) as warnings:
        assert warnings == []
        y = x.double() @ wanted.T + layer.bias.double()
        torch.testing.assert_close(layer(x).double(), y, rtol=1e-5, atol=1e-5)
    assert not layer.branches and torch.equal(layer.weight, before)


UNREAD = [
    ({"oft_blocks": (2, 2, 2)}, "OFT"),
    (
        {"oft_R.weight": (2, 3), "oft_R.scaled_oft": (), "oft_block_size_metadata": (), "coft_eps_metadata": ()}
        | {"scaled_oft_metadata": (), "lora_A.weight": (2, IN), "lora_B.weight": (OUT, 2), "dora_scale": (OUT, 1)},
        "OFT",
    ),
    ({"a1.weight": (2, 2), "a2.weight": (2, 2), "b1.weight": (2, 2), "b2.weight": (2, 2)}, "GLoRA"),
    ({"lora_A.weight": (2, IN), "lora_B.weight": (OUT, 2), "lora_mid.weight": (2, 2)}, "a Tucker decomposition"),
    ({"boft_R": (1, 2, 2, 2)}, "BOFT"),
    ({"ia3_l": (OUT,)}, "IA3"),
    ({"weight": (OUT, IN)}, "a whole weight and not a change"),
    ({"lora_A.weight": (2, IN)}, "half of a pair"),
    ({"hada_w1_a": (OUT, 2)}, "a part of LoHa"),
    ({"lokr_w1": (2, 2)}, "a part of LoKr"),
    ({"dora_scale": (OUT, 1)}, "DoRA without its pair"),
    ({"something": (2, 2)}, "of a kind that is not read"),
]


@pytest.mark.parametrize(("keys", "kind"), UNREAD)
def test_what_is_not_read_is_named_by_its_kind(write: Write, refusal: Callable, keys: dict, kind: str) -> None:
    tensors = {f"unet.proj_in.{key}": torch.ones(shape) for key, shape in keys.items()}
    path = write(tensors)
    with refusal(path, kind):
        load_lora(path)
    fit = match(load_lora(write({**pair(), **tensors})), Model())
    assert fit.warning.startswith("lora.safetensors: 1 layers applied, 1 left out, e.g. unet.proj_in")
    assert fit.warning.endswith(f": {kind}.")


def test_a_damaged_pair_of_products_is_refused(write: Write, refusal: Callable) -> None:
    loha = {f"{LAYER}.hada_w{n}_{h}": torch.ones(2, 2) for n in (1, 2) for h in "ab"} | {
        f"{LAYER}.hada_w1_a": torch.ones(2, 3)
    }
    path = write(loha)
    with refusal(path, "do not fit each other"):
        load_lora(path)
    path = write({**pair(), f"{LAYER}.diff": noise(OUT, IN)})
    with refusal(path, "for the same layer"):
        load_lora(path)
    path = write({**pair(), f"{LAYER}.dora_scale": torch.ones(5, 1)})
    with refusal(path, "fits nothing", f"a DoRA magnitude of shape 5x1 in the file, {OUT}x{IN} in the model"):
        match(load_lora(path), Model())
    path = write({f"{LAYER}.diff": torch.ones(())})
    with refusal(path, f"shape [] in the file, {OUT}x{IN} in the model"):
        match(load_lora(path), Model())


def test_an_ic_lora_is_refused_in_words(write: Write, refusal: Callable, tmp_path: Path) -> None:
    path = write(pair(), {"reference_downscale_factor": "2"})
    with refusal(path, "IC-LoRA (reference_downscale_factor in its metadata)", "needs a reference video"):
        load_lora(path)
    path = write(pair(), name="ltx-2.3-22b-IC-LoRA-pose.safetensors")
    with refusal(path, "IC-LoRA (by its name)"):
        load_lora(path)
    for name in ("ltx-2.3-22b-ic-lora-hdr-0.9.safetensors", "ltx-2.5-22b-ic-lora-sdr-to-hdr-1.0.safetensors"):
        with refusal(write(pair(), name=name), "is an IC-LoRA for HDR (by its name)", "cannot be decoded"):
            load_lora(tmp_path / name, referenced=True)
    for metadata in (
        {"reference_spatial_scale_factor": "2"},
        {"reference_temporal_scale_factor": "4"},
        *({"ss_ic_lora_strategy": way} for way in ("v2v", "av_ic", "video_ref_only_av")),
    ):
        path = write(pair(), metadata, "lora_weights_step_02000.safetensors")
        with refusal(path, f"IC-LoRA ({next(iter(metadata))} in its metadata)", "needs a reference video"):
            load_lora(path)
    both = {"reference_spatial_scale_factor": "2", "reference_temporal_scale_factor": "4"}
    assert load_lora(write(pair(), both), referenced=True).reference == (2, 4)
    assert load_lora(write(pair(), {"ss_ic_lora_strategy": "v2v"}), referenced=True).reference == (1, 1)
    assert load_lora(write(pair(), {"ss_ic_lora_strategy": "audio_ref_ic"})).reference is None
    for factor in ("2.0", "0", "65", "9" * 5000):
        path = write(pair(), {"reference_downscale_factor": factor})
        with refusal(path, f"its reference_downscale_factor is '{factor[:50]}", "not a whole number"):
            load_lora(path, referenced=True)
    for name in ("music-lora.safetensors", "magic_lora.safetensors"):
        assert load_lora(write(pair(), name=name)).changes


def test_layers_of_the_connectors(tiny_default: TinyFiles, write: Write) -> None:
    """They change the connectors; a file with layers for both parts is told as one."""
    checkpoint = load_checkpoint(tiny_default.checkpoint)
    model, connectors = checkpoint.blueprint(), checkpoint.connectors(torch.float32)
    layer = "video_connector.transformer_blocks.0.attn1.to_q"
    shape = connectors.get_parameter(f"{layer}.weight").shape
    key = "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q"
    only = {f"{key}.lora_A.weight": noise(2, shape[1]), f"{key}.lora_B.weight": noise(shape[0], 2)}
    lora = load_lora(write(only))
    with pytest.raises(InputError, match="it belongs to the text connectors"):
        match(lora, model)
    fit = match(lora, connectors)
    assert match(lora, model, [fit]).told(fit) == "all of its 1 layers applied"
    merger = Merger(connectors, checkpoint.connectors_weight, optional=True)
    before = connectors.get_parameter(f"{layer}.weight").clone()
    merger.set([(lora, 0.5)])
    expected = before.double() + 0.5 * noise(shape[0], 2).double() @ noise(2, shape[1]).double()
    torch.testing.assert_close(connectors.get_parameter(f"{layer}.weight").double(), expected)
    merger.set([])
    assert torch.equal(connectors.get_parameter(f"{layer}.weight"), before)
    both = load_lora(write({**only, **load_file(tiny_default.camera_lora)}))
    alone = match(both, model)
    assert alone.warning.endswith(
        f"1 left out, e.g. {key}: it belongs to the text connectors, which this LoRA is not applied to here."
    )
    assert alone.warning_beside(match(both, connectors, optional=True)) is None


@pytest.mark.parametrize("kind", ["LORA", "DORA", "RSLORA", "BIAS", "LOHA", "LOKR"])
def test_pefts_own_files(tmp_path: Path, kind: str) -> None:
    """Weights as peft merges them, from the files that it writes. It is not among the requirements, because diffusers
    behaves differently beside it: to run this, install peft and accelerate with --no-deps --target FOLDER and put
    FOLDER into PYTHONPATH."""
    peft = pytest.importorskip("peft")
    common = {"target_modules": ["to_q"], "r": RANK, "init_weights": False}
    lora = {"target_modules": ["to_q"], "r": RANK, "lora_alpha": 7, "init_lora_weights": False}
    config = {
        "LORA": lambda: peft.LoraConfig(**lora, alpha_pattern={"attn1.to_q": 5}),
        "DORA": lambda: peft.LoraConfig(**lora, use_dora=True),
        "RSLORA": lambda: peft.LoraConfig(**lora, use_rslora=True),
        "BIAS": lambda: peft.LoraConfig(**lora, lora_bias=True),
        "LOHA": lambda: peft.LoHaConfig(**common, alpha=7),
        "LOKR": lambda: peft.LoKrConfig(**common, alpha=7, decompose_both=True),
    }[kind]()
    torch.manual_seed(3)
    model = peft.get_peft_model(Model(), config)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.5
    model.save_pretrained(str(tmp_path))
    merged = model.merge_and_unload().state_dict()
    found = changed(load_lora(tmp_path / "adapter_model.safetensors"))
    assert not torch.equal(merged[WEIGHT], Model().get_parameter(WEIGHT))
    for name in (WEIGHT, BIAS):
        torch.testing.assert_close(found[name].float(), merged[name], rtol=1e-5, atol=1e-5)
