"""LoRA files: merged weights against the explicit formula and peft's files, and restored to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.lora import Merger, applied, load_lora, match, merged
from a2v.ltx.weights.quantized import Branch, QuantizedLinear, to_float8
from a2v.tests import layouts
from a2v.tests.tiny import TinyFiles
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

RANK = 3


class Model(nn.Module):
    """Linear layers under diffusers' names of the transformer."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.proj_in = nn.Linear(8, 16)
        self.transformer_blocks = nn.ModuleList([nn.ModuleDict({"to_q": nn.Linear(16, 16)}) for _ in range(2)])
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.requires_grad_(False)


PROJ = "proj_in.weight"
TO_Q = "transformer_blocks.0.to_q.weight"


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def original(model: Model) -> Callable[[str], Tensor]:
    """What the checkpoint holds. As there, the parameters are views of the very same memory."""
    return {name: parameter.data for name, parameter in model.named_parameters()}.__getitem__


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(tensors: dict[str, Tensor], name: str = "lora.safetensors") -> Path:
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / name)
        return tmp_path / name

    return write


def pair(out: int = 16, columns: int = 8, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, columns, generator=generator), torch.randn(out, RANK, generator=generator)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


PREFIXES = ["diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model.", ""]
HALVES = [
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
]


@pytest.mark.parametrize("layer", ["patchify_proj", "proj_in"])
@pytest.mark.parametrize("prefix", [*PREFIXES, "base_model.model.diffusion_model."])
@pytest.mark.parametrize("halves", HALVES)
def test_every_spelling(write: Callable, layer: str, prefix: str, halves: tuple[str, str]) -> None:
    down, up = pair()
    lora = load_lora(write({prefix + layer + halves[0]: down, prefix + layer + halves[1]: up}))
    fit = match(lora, Model())
    assert fit.matched == (PROJ,) and not fit.skipped and not lora.unread
    assert torch.equal(fit.changes[PROJ].down, down)
    assert torch.equal(fit.changes[PROJ].up, up)


@pytest.mark.parametrize(("alpha", "factor"), [(None, 1.0), (6.0, 2.0), (1.0, 1 / 3)])
def test_merge_is_the_formula(
    model: Model, original: Callable, write: Callable, alpha: float | None, factor: float
) -> None:
    down, up = pair()
    tensors = {"diffusion_model.patchify_proj.lora_A.weight": down, "diffusion_model.patchify_proj.lora_B.weight": up}
    if alpha is not None:
        tensors["diffusion_model.patchify_proj.alpha"] = torch.tensor(alpha)
    before = snapshot(model)
    with applied(model, [(load_lora(write(tensors)), 0.7)], original) as warnings:
        expected = before[PROJ].double() + 0.7 * factor * (up.double() @ down.double())
        torch.testing.assert_close(model.proj_in.weight.data, expected.float(), rtol=1e-6, atol=1e-6)
        assert warnings == []
        assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == {PROJ}
    assert identical(snapshot(model), before)


def two(write: Callable) -> tuple[Path, Path]:
    a, b = pair(), pair(16, 16, seed=3)
    c = pair(16, 16, seed=4)
    first = {
        "diffusion_model.patchify_proj.lora_A.weight": a[0],
        "diffusion_model.patchify_proj.lora_B.weight": a[1],
        "diffusion_model.transformer_blocks.0.to_q.lora_A.weight": b[0],
        "diffusion_model.transformer_blocks.0.to_q.lora_B.weight": b[1],
    }
    second = {
        "diffusion_model.transformer_blocks.0.to_q.lora_A.weight": c[0],
        "diffusion_model.transformer_blocks.0.to_q.lora_B.weight": c[1],
    }
    return write(first, "first.safetensors"), write(second, "second.safetensors")


def test_stacking(model: Model, original: Callable, write: Callable) -> None:
    first, second = map(load_lora, two(write))
    before = snapshot(model)
    with applied(model, [(first, 0.5), (second, -2.0)], original):
        p, q = (match(lora, model).changes[TO_Q] for lora in (first, second))
        expected = before[TO_Q] + 0.5 * (p.up @ p.down) - 2 * (q.up @ q.down)
        torch.testing.assert_close(model.get_parameter(TO_Q).data, expected, rtol=1e-5, atol=1e-5)
        assert not torch.equal(model.get_parameter(PROJ), before[PROJ])
    assert identical(snapshot(model), before)


def test_the_order_of_loras_changes_no_bit(model: Model, original: Callable, write: Callable) -> None:
    """The graph merges an IC-LoRA behind the distilled one, and the command before it."""
    named = [*zip(map(load_lora, two(write)), (0.3, 0.7), strict=True)]
    merger, found = Merger(model, original), []
    for loras in (named, named[::-1]):
        merger.set([])
        merger.set(loras)
        found.append(snapshot(model))
    assert identical(*found) and not identical(found[0], {name: original(name) for name in found[0]})


def test_the_order_of_loras_of_one_name_changes_no_bit(
    model: Model, original: Callable, write: Callable, tmp_path: Path
) -> None:
    loras = []
    for seed in range(5):
        (tmp_path / str(seed)).mkdir()
        down, up = pair(seed=seed)
        loras.append(
            load_lora(write({"proj_in.lora_A.weight": down, "proj_in.lora_B.weight": up}, f"{seed}/one.safetensors"))
        )
    merger, found = Merger(model, original), []
    for order in (loras, loras[::-1], loras[2:] + loras[:2]):
        merger.set([])
        merger.set([(lora, 0.7) for lora in order])
        found.append(snapshot(model))
    assert identical(*found[:2]) and identical(*found[1:])


def test_switching_strength_equals_merging_afresh(model: Model, original: Callable, write: Callable) -> None:
    first, second = map(load_lora, two(write))
    before = snapshot(model)
    merger = Merger(model, original)
    merger.set([(first, 0.2), (second, 1.0)])
    merger.set([(first, 0.5)])
    switched = snapshot(model)
    merger.set([])
    assert identical(snapshot(model), before)
    merger.set([(first, 0.5)])
    assert identical(snapshot(model), switched)
    merger.set([(second, 1.0)])
    assert torch.equal(model.get_parameter(PROJ), before[PROJ])


def test_same_set_again_touches_nothing(model: Model, original: Callable, write: Callable) -> None:
    first, second = map(load_lora, two(write))
    merger = Merger(model, original)
    merger.set([(first, 0.2), (second, 0.0)])
    places = [p.data_ptr() for p in model.parameters()]
    merger.set([(first, 0.2)])
    assert [p.data_ptr() for p in model.parameters()] == places


def test_strength_zero_touches_nothing(model: Model, write: Callable) -> None:
    first, _ = map(load_lora, two(write))

    def original(name: str) -> Tensor:
        raise AssertionError("read")

    before = snapshot(model)
    with applied(model, [(first, 0.0)], original) as warnings:
        assert warnings == []
        assert identical(snapshot(model), before)


def test_restored_after_an_error_inside(model: Model, original: Callable, write: Callable) -> None:
    first, _ = map(load_lora, two(write))
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt), applied(model, [(first, 1.0)], original):
        raise KeyboardInterrupt
    assert identical(snapshot(model), before)


def test_restored_after_an_interruption_halfway(model: Model, original: Callable, write: Callable) -> None:
    first, _ = map(load_lora, two(write))
    before = snapshot(model)
    asked = []

    def flaky(name: str) -> Tensor:
        asked.append(name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(name)

    with pytest.raises(KeyboardInterrupt), applied(model, [(first, 1.0)], flaky):
        pass
    assert identical(snapshot(model), before)
    assert len(asked) == 4


def test_progress_counts_each_weight_that_is_set_and_may_end_it(
    model: Model, original: Callable, write: Callable
) -> None:
    first, second = map(load_lora, two(write))
    before, said = snapshot(model), []
    merger = Merger(model, original)
    merger.set([(first, 1.0)], lambda *counted: said.append(counted))
    changed = [name for name, value in snapshot(model).items() if not torch.equal(value, before[name])]
    assert said == [(number, len(changed)) for number in range(1, len(changed) + 1)] and len(changed) > 1

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merger.set([(second, 0.5)], interrupted)
    said.clear()
    merger.set([], lambda *counted: said.append(counted))
    assert identical(snapshot(model), before) and said[-1][0] == said[-1][1] > 0


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2])
def test_a_value_that_is_no_number_is_told_before_anything_changes(
    model: Model, original: Callable, write: Callable, number: float, dtype: torch.dtype
) -> None:
    down, up = pair()
    up[-1, -1] = number
    unread = {"other.lora_A.weight": torch.full((RANK, 8), number), "other.lora_B.weight": pair()[1]}
    tensors = {"proj_in.lora_A.weight": down.to(dtype), "proj_in.lora_B.weight": up.to(dtype)}
    scales = {f"{key}_scale": torch.ones(()) for key in tensors} if dtype.itemsize == 1 else {}
    bad = write(tensors | scales)
    whole = {key: t.float().where(t.float().isfinite(), torch.zeros(())) for key, t in tensors.items()}
    good = load_lora(write(unread | whole, "good"))
    before, merger = snapshot(model), Merger(model, original)
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"lora\.safetensors: proj_in\.lora_B\.weight has a value that is NaN or inf"
        ):
            merger.set([(good, 1.0), (load_lora(bad), 0.5)])
        assert identical(snapshot(model), before)
    merger.set([(load_lora(bad), 0.0)])
    merger.set([(good, 1.0)])
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_bfloat16_rounds_once(model: Model, write: Callable) -> None:
    model = model.bfloat16()
    stored = snapshot(model)
    first, second = map(load_lora, two(write))
    with applied(model, [(first, 0.3), (second, 0.4)], stored.__getitem__):
        p, q = (match(lora, model).changes[TO_Q] for lora in (first, second))
        exact = stored[TO_Q].double() + 0.3 * (p.up @ p.down).double() + 0.4 * (q.up @ q.down).double()
        merged = model.get_parameter(TO_Q)
        assert merged.dtype == torch.bfloat16
        assert ((merged.double() - exact).abs() <= exact.abs() * 2.0**-8).all()  # half a unit in the last place
    assert identical(snapshot(model), stored)


def test_halves_of_half_precision_are_merged_in_float32(write: Callable) -> None:
    down, up = (t.bfloat16() for t in pair())
    lora = load_lora(write({"proj_in.lora_A.weight": down, "proj_in.lora_B.weight": up}))
    weight = torch.ones(16, 8)
    total = merged(weight, [(lora.changes["proj_in", "weight"], 0.5)])
    assert total.dtype == torch.float32 and torch.equal(weight, torch.ones(16, 8))
    torch.testing.assert_close(total, 1 + 0.5 * (up.float() @ down.float()), rtol=1e-6, atol=1e-6)


def test_partial_match_warns(model: Model, original: Callable, write: Callable) -> None:
    down, up = pair()
    path = write(
        {
            "proj_in.lora_A.weight": down,
            "proj_in.lora_B.weight": up,
            "transformer_blocks.7.to_q.lora_A.weight": down,
            "transformer_blocks.7.to_q.lora_B.weight": up,
            "transformer_blocks.1.to_q.lora_A.weight": down,
            "transformer_blocks.1.to_q.lora_B.weight": up,
            "proj_out.oft_blocks": torch.zeros(16),
            "transformer_blocks.0.to_q.lora_A.weight": down,
        }
    )
    lora = load_lora(path)
    fit = match(lora, model)
    assert fit.matched == (PROJ,)
    assert fit.skipped == {
        "transformer_blocks.1.to_q": "shape 16x8 in the file, 16x16 in the model",
        "transformer_blocks.7.to_q": "no such layer",
    }
    assert lora.unread == {"proj_out": "OFT", "transformer_blocks.0.to_q": "half of a pair"}
    with applied(model, [(lora, 1.0)], original) as warnings:
        assert len(warnings) == 1
        assert warnings[0].startswith("lora.safetensors: 1 layers applied, 4 left out, e.g. transformer_bl")


def test_no_match_is_refused_before_anything_is_touched(model: Model, original: Callable, write: Callable) -> None:
    first, _ = map(load_lora, two(write))
    down, up = pair(out=17)
    other = load_lora(write({"proj_in.lora_A.weight": down, "proj_in.lora_B.weight": up}, "19b.safetensors"))
    before = snapshot(model)
    message = r"19b\.safetensors: fits nothing.*shape 17x8 in the file, 16x8 in the model"
    with pytest.raises(InputError, match=message), applied(model, [(first, 1.0), (other, 1.0)], original):
        pass
    assert identical(snapshot(model), before)


def test_strength_must_be_a_number(model: Model, original: Callable, write: Callable) -> None:
    first, _ = map(load_lora, two(write))
    with pytest.raises(InputError, match=r"first\.safetensors: its strength is nan"):
        Merger(model, original).set([(first, float("nan"))])


def test_pointwise_convolution_is_a_matrix_and_others_are_left(write: Callable) -> None:
    down, up = pair()
    lora = load_lora(
        write(
            {
                "proj_in.lora_A.weight": down[:, :, None, None, None],
                "proj_in.lora_B.weight": up[:, :, None, None, None],
                "conv.lora_A.weight": torch.zeros(RANK, 8, 3, 3),
                "conv.lora_B.weight": torch.zeros(16, RANK, 1, 1),
            }
        )
    )
    assert list(lora.changes) == [("proj_in", "weight")]
    assert torch.equal(lora.changes["proj_in", "weight"].down, down)
    assert lora.unread == {"conv": "a change of a convolution"}


def test_files_that_are_no_lora(tmp_path: Path, write: Callable) -> None:
    down, up = pair()
    good = {"proj_in.lora_A.weight": down, "proj_in.lora_B.weight": up}
    with pytest.raises(InputError, match=r"lora\.safetensors: holds no LoRA"):
        load_lora(write({"proj_in.weight": down}))
    with pytest.raises(InputError, match=r"missing\.safetensors: no such file"):
        load_lora(tmp_path / "missing.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(write(good).read_bytes()[:-16])
    with pytest.raises(InputError, match=r"cut\.safetensors.*cut short"):
        load_lora(cut)
    torch.save(good, tmp_path / "pickle.safetensors")
    with pytest.raises(InputError, match=r"pickle\.safetensors: is a pickle"):
        load_lora(tmp_path / "pickle.safetensors")
    with pytest.raises(InputError, match="differ in rank"):
        load_lora(write({**good, "proj_in.lora_B.weight": torch.zeros(16, RANK + 1)}))
    twice = {f"diffusion_model.patchify_proj.lora_{half}.weight": value for half, value in (("A", down), ("B", up))}
    with pytest.raises(InputError, match="for the same layer"):
        match(load_lora(write({**good, **twice})), Model())
    with pytest.raises(InputError, match="for the same layer"):
        load_lora(write({**good, "proj_in.lora_down.weight": down}))
    with pytest.raises(InputError, match="not one finite number"):
        load_lora(write({**good, "proj_in.alpha": torch.tensor(float("inf"))}))


@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_tiny_checkpoint(oracle: Path, tmp_path: Path, dtype: torch.dtype | None) -> None:
    """Both published layouts on the tiny transformer: merged as the formula says, the mapped file untouched."""
    file = tmp_path / "tiny.safetensors"
    shutil.copy(oracle / "tiny" / "ltx-2.3-tiny.safetensors", file)
    checkpoint = load_checkpoint(file)
    transformer = checkpoint.transformer(dtype)
    before = snapshot(transformer)
    paths = [oracle / "tiny" / f"ltx-2.3-tiny-{kind}-lora.safetensors" for kind in ("distilled", "camera")]
    loras = [load_lora(path) for path in paths]
    for lora in loras:
        fit = match(lora, transformer)
        assert not fit.skipped and fit.warning is None
    assert len(loras[1].changes) == 96
    with applied(transformer, [(loras[0], 0.2), (loras[1], 0.7)], checkpoint.transformer_weight) as warnings:
        assert warnings == []
        raw = [load_file(path) for path in paths]
        key = "transformer_blocks.1.ff.net.0.proj"
        expected = before[f"{key}.weight"].double()
        for scale, tensors in zip((0.2, 0.7), raw, strict=True):
            a, b = (tensors[f"diffusion_model.{key}.lora_{half}.weight"].double() for half in "AB")
            expected = expected + scale * (b @ a)
        merged = transformer.get_parameter(f"{key}.weight")
        tolerance = 1e-6 if dtype else 2.0**-8
        torch.testing.assert_close(merged.double(), expected, rtol=tolerance, atol=1e-7)
        changed = {n for n, p in transformer.named_parameters() if not torch.equal(p, before[n])}
        assert changed <= {name for lora in loras for name in match(lora, transformer).changes}
        assert len(changed) > 90
    assert identical(snapshot(transformer), before)
    assert identical(snapshot(load_checkpoint(file).transformer(dtype)), before)


@pytest.fixture
def resized(tiny_default: TinyFiles, write: Callable) -> tuple[Path, dict[str, Tensor]]:
    """A distilled LoRA as the resizing scripts leave it: of another rank in every layer, some layers with their alpha;
    and the change of each of the transformer's weights by the formula."""
    tensors, changes = {}, {}
    source = load_file(tiny_default.distilled_lora)
    generator = torch.Generator().manual_seed(6)
    names = sorted(key.removesuffix(".lora_A.weight") for key in source if key.endswith(".lora_A.weight"))
    for i, name in enumerate(names):
        rank = 1 + i % 9
        down = torch.randn(rank, source[f"{name}.lora_A.weight"].shape[1], generator=generator).bfloat16()
        up = (0.1 * torch.randn(source[f"{name}.lora_B.weight"].shape[0], rank, generator=generator)).bfloat16()
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        change = up.double() @ down.double()
        if i % 3 == 0:
            tensors[f"{name}.alpha"] = torch.tensor(4.0)
            change *= 4 / rank
        changes[name.replace("diffusion_model.", layouts.PREFIX) + ".weight"] = change
    return write(tensors, "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors"), changes


def reference(files: TinyFiles, folder: Path, changes: dict[str, Tensor], meaning: dict[str, Tensor]) -> nn.Module:
    """The transformer in float32 with weights that were changed in the file."""
    tensors, _ = layouts.read(files.checkpoint)
    weights = {name: (meaning.get(name, tensors[name]).double() + change) for name, change in changes.items()}
    path = layouts.write_meaning(
        files.checkpoint, folder / "changed.safetensors", {k: w.float() for k, w in weights.items()}
    )
    return load_checkpoint(path).transformer(torch.float32)


def test_ranks_that_differ_by_layer(tiny_default: TinyFiles, resized: tuple, tmp_path: Path) -> None:
    path, changes = resized
    checkpoint = load_checkpoint(tiny_default.checkpoint)
    transformer, lora = checkpoint.transformer(torch.float32), load_lora(path)
    assert len({pair.down.shape[0] for pair in lora.changes.values()}) == 9
    expected = reference(tiny_default, tmp_path, {k: 0.4 * c for k, c in changes.items()}, {})
    with applied(transformer, [(lora, 0.4)], checkpoint.transformer_weight) as warnings:
        assert warnings == []
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(transformer.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("layout", ["fp8", "gguf"])
def test_on_quantized_weights(tiny_default: TinyFiles, resized: tuple, tmp_path: Path, layout: str) -> None:
    """Decoded weight + the formula; the stored bytes are not touched; a switch of strength places nothing anew."""
    path, changes = resized
    file = tmp_path / ("q.gguf" if layout == "gguf" else "q.safetensors")
    write = {"fp8": layouts.write_fp8, "gguf": lambda *paths: layouts.write_gguf(*paths, "Q8_0")}[layout]
    meaning = write(tiny_default.checkpoint, file)
    checkpoint = load_checkpoint(file)
    transformer, lora = checkpoint.transformer(torch.float32), load_lora(path)
    before = snapshot(transformer)
    expected = reference(tiny_default, tmp_path, {k: 0.3 * c for k, c in changes.items()}, meaning)
    merger = Merger(transformer, checkpoint.transformer_weight)
    assert merger.set([(lora, 0.9)]) == []
    layers = {n: m for n, m in transformer.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(layers) > 80
    placed = {name: layer.branches[0][0] for name, layer in layers.items()}
    merger.set([(lora, 0.3)])
    generator = torch.Generator().manual_seed(8)
    for name, module in expected.named_modules():
        if isinstance(module, nn.Linear):
            x = torch.randn(2, 3, module.in_features, generator=generator)
            ours = transformer.get_submodule(name)
            torch.testing.assert_close(ours(x), module(x), rtol=1e-4, atol=1e-5, msg=name)
            if name in layers:
                assert ours.branches[0][0] is placed[name] and torch.equal(ours.weight, before[f"{name}.weight"])
    merger.set([])
    assert not any(layer.branches for layer in layers.values()) and identical(snapshot(transformer), before)


def test_a_branch_keeps_what_rounding_into_the_weight_loses() -> None:
    """Why LoRAs are not written into quantized weights: of a change of 5 % of the weight, errors against its effect."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(256, 256, generator=generator)
    stored = to_float8(weight)
    down, up = torch.randn(24, 256, generator=generator), torch.randn(256, 24, generator=generator)
    up *= 0.05 * weight.norm() / (up @ down).norm()
    x = torch.randn(64, 256, generator=generator)
    effect = x @ (up @ down).T
    wanted = x @ stored.decode().T + effect

    def error(y: Tensor) -> float:
        return ((y - wanted).norm() / effect.norm()).item()

    layer = QuantizedLinear(stored, None)
    layer.branches = ((Branch(down, up), 1.0),)
    again = to_float8(stored.decode() + up @ down)
    assert error(layer(x)) < 1e-5
    assert error(layer.bfloat16()(x.bfloat16()).float()) < 0.1  # what bfloat16 makes of any output
    assert error(x @ again.decode().T) > 0.4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_the_gpu_weights_keep_their_place(write: Callable) -> None:
    model = Model()
    stored = snapshot(model)
    model = model.cuda().bfloat16()
    before = snapshot(model)
    places = [p.data_ptr() for p in model.parameters()]
    first, second = map(load_lora, two(write))
    with applied(model, [(first, 0.5), (second, 1.0)], stored.__getitem__):
        p, q = (match(lora, model).changes[TO_Q] for lora in (first, second))
        expected = stored[TO_Q] + 0.5 * (p.up @ p.down) + q.up @ q.down
        torch.testing.assert_close(model.get_parameter(TO_Q).float().cpu(), expected, rtol=2.0**-8, atol=1e-6)
        assert [p.data_ptr() for p in model.parameters()] == places
    assert identical(snapshot(model), before)
