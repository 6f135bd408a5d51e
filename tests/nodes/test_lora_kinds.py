"""Kinds of LoRA files in ComfyUI: the numbers of its own weight adapters, and each kind under its memory management."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import comfy.lora
import comfy.model_management as management
from a2v.ltx.errors import InputError
from a2v.ltx.models import size
from a2v.ltx.prompt.gemma import load_gemma
from a2v.ltx.prompt.text import encode_text
from a2v.ltx.weights import lora
from a2v.ltx.weights.checkpoint import Checkpoint, load_checkpoint
from a2v.nodes import loras, memory, text
from a2v.tests import layouts
from a2v.tests.nodes.devices import DEVICE, simulated
from a2v.tests.tiny import TinyFiles, write_tiny
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("inference")

CPU = torch.device("cpu")
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    files = write_tiny(tmp_path_factory.mktemp("tiny"), layers=2)
    layouts.write_fp8(files.checkpoint, files.checkpoint.with_name("fp8.safetensors"), "rows")
    return files


def noise(*shape: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def kinds(layer: str, out: int, width: int) -> dict[str, Tensors]:
    """By the kind's name a file's tensors for one layer [out, width], two even numbers."""
    pair = {f"{layer}.lora_down.weight": noise(2, width), f"{layer}.lora_up.weight": noise(out, 2)}
    alpha = {f"{layer}.alpha": torch.tensor(5.0)}
    return {
        "LoRA": {**pair, **alpha},
        "DoRA": {**pair, **alpha, f"{layer}.dora_scale": 2 + noise(1, width)},
        "LoHa": {
            **{f"{layer}.hada_w{n}_a": noise(out, 2) + n for n in (1, 2)},
            **{f"{layer}.hada_w{n}_b": noise(2, width) - n for n in (1, 2)},
            **alpha,
        },
        "LoKr": {
            f"{layer}.lokr_w1": noise(2, 2),
            f"{layer}.lokr_w2_a": noise(out // 2, 2),
            f"{layer}.lokr_w2_b": noise(2, width // 2),
            **alpha,
        },
        "full difference": {f"{layer}.diff": noise(out, width), f"{layer}.diff_b": noise(out)},
        "new value": {f"{layer}.set_weight": noise(out, width) + 0.1},
    }


def saved(folder: Path, tensors: Tensors, name: str = "lora.safetensors") -> lora.Lora:
    save_file(tensors, folder / name)
    return lora.load_lora(folder / name)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj_in = nn.Linear(8, 12)
        for parameter in self.parameters():
            parameter.data = noise(*parameter.shape)
        self.requires_grad_(False)


@pytest.mark.parametrize("kind", kinds("", 2, 2))
def test_as_comfyuis_weight_adapters(tmp_path: Path, kind: str) -> None:
    """At strengths 1 and 0.6. DoRA by columns; by rows ComfyUI divides by the norm of W itself, where peft and LyCORIS,
    which train it, divide by the norm of the changed weight. A new value has no strength there."""
    tensors = kinds("diffusion_model.proj_in", 12, 8)[kind]
    loaded = saved(tmp_path, tensors)
    patches = comfy.lora.load_lora(tensors, {"diffusion_model.proj_in": "proj_in.weight"})
    assert lora.match(loaded, Layer()).kinds.keys() == {kind}
    for strength in (1.0, *([0.6] if kind != "new value" else [])):
        model, plain = Layer(), Layer().state_dict()
        with lora.applied(model, [(loaded, strength)], plain.__getitem__):
            for name, patch in patches.items():
                expected = comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], plain[name].clone(), name)
                assert not torch.equal(expected, plain[name])
                torch.testing.assert_close(model.get_parameter(name).data, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def mixed(files: TinyFiles, tmp_path: Path) -> lora.Lora:
    """A file with every kind, a layer each, and a difference of a parameter that belongs to no leaf of the model."""
    plain = load_checkpoint(files.checkpoint).blueprint()
    tensors: Tensors = {}
    for number, kind in enumerate(kinds("", 2, 2)):
        layer = f"transformer_blocks.{number % 2}.{('attn1', 'attn2', 'audio_attn1')[number // 2]}.to_q"
        tensors |= kinds(layer, *plain.get_parameter(f"{layer}.weight").shape)[kind]
    table = "transformer_blocks.1.scale_shift_table"
    tensors[f"{table}.diff"] = noise(*plain.get_parameter(table).shape)
    return saved(tmp_path, tensors)


def weights(model: nn.Module) -> Tensors:
    """Every parameter, and of quantized layers what they compute of one input."""
    found = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    for name, layer in model.named_modules():
        if isinstance(layer, lora.QuantizedLinear):
            x = noise(3, layer.in_features).to(layer.weight.device)
            found[f"{name}()"] = layer(x).cpu().clone()
    return found


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", ["ltx-2.3-tiny.safetensors", "fp8.safetensors"])
def test_what_is_no_number_is_told_by_the_node_that_adds_the_lora(files: TinyFiles, tmp_path: Path, name: str) -> None:
    """A strength may be the text nan, which ComfyUI reads as a number."""
    module = load_checkpoint(files.checkpoint.with_name(name)).transformer(torch.float32)
    patcher = memory.hold(module, torch.device("cpu"), torch.device("cpu"))
    model, layer = memory.Model(patcher, patcher), "transformer_blocks.1.attn1.to_q"
    pair = kinds(layer, *lora.weight_shape(module, f"{layer}.weight"))["LoRA"]
    whole = lora.match(saved(tmp_path, pair), module)
    for strength in (float("nan"), float("inf")):
        with pytest.raises(InputError, match=rf"^lora\.safetensors: its strength is {strength}; give a number"):
            model.with_lora(whole, strength)
    down = next(key for key in pair if "lora_down" in key)
    pair[down][0, 0] = float("nan")
    broken = lora.match(saved(tmp_path, pair, "broken.safetensors"), module)
    assert model.with_lora(broken, 0.0).loras and model.with_lora(whole, 1.0).loras
    with pytest.raises(InputError, match=rf"broken\.safetensors: {down} has a value that is NaN or infinite; download"):
        model.with_lora(broken, 0.5)


@pytest.mark.parametrize("name", ["ltx-2.3-tiny.safetensors", "fp8.safetensors"])
def test_every_kind_is_merged_as_the_engine_merges_it(
    files: TinyFiles, mixed: lora.Lora, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """On a device, and back; with fp8 weights as edits beside them."""
    room = 1 << 40
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(management, "soft_empty_cache", lambda force=False: None)
    monkeypatch.setattr(
        management, "get_free_memory", lambda dev=None, torch_free_too=False: (room, 0) if torch_free_too else room
    )
    checkpoint = load_checkpoint(files.checkpoint.with_name(name))
    engine = checkpoint.transformer(torch.float32)
    plain = weights(engine)
    with lora.applied(engine, [(mixed, 0.6)], checkpoint.transformer_weight):
        expected = weights(engine)
    assert sum(not torch.equal(expected[key], plain[key]) for key in plain) == 8
    patcher = memory.hold(checkpoint.transformer(torch.float32), DEVICE, CPU)
    model = memory.Model(patcher, patcher)
    fit = lora.match(mixed, model.module)
    assert fit.warning is None and len(fit.kinds) == 6
    handle = model.with_lora(fit, 0.6)
    with simulated():
        for each, wanted in ((handle, expected), (model, plain), (handle, expected)):
            memory.use(each)
            assert_same(weights(each.module), wanted)
        for each in handle.get_models():
            each.detach()
    model.attach()
    assert_same(weights(model.module), plain)


def test_every_kind_where_the_weights_wait_in_host_memory(
    files: TinyFiles, mixed: lora.Lora, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that is fetched for its call computes with the merged weight, and a table in no leaf is merged."""
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    checkpoint = load_checkpoint(files.checkpoint)
    engine = checkpoint.transformer(torch.float32)
    patcher = memory.hold(checkpoint.transformer(torch.float32), DEVICE, CPU)
    handle = memory.Model(patcher, patcher).with_lora(lora.match(mixed, patcher.model.module), 0.6)
    with simulated(), lora.applied(engine, [(mixed, 0.6)], checkpoint.transformer_weight):
        handle.patcher.partially_load(DEVICE, 1000)
        memory.settle(handle.patcher.model, DEVICE)
        for name in {name.rpartition(".")[0] for name, _ in mixed.changes}:
            ours, theirs = handle.module.get_submodule(name), engine.get_submodule(name)
            if isinstance(theirs, nn.Linear):
                x = noise(3, theirs.in_features)
                assert torch.equal(ours(x.to(DEVICE)).cpu(), theirs(x))
        table = "transformer_blocks.1.scale_shift_table"
        assert torch.equal(handle.module.get_parameter(table).cpu(), engine.get_parameter(table))
        handle.patcher.detach()
    assert torch.equal(handle.module.get_parameter(table), checkpoint.transformer_weight(table))


@pytest.fixture
def connector_lora(files: TinyFiles, tmp_path: Path) -> lora.Lora:
    plain = load_checkpoint(files.checkpoint).connectors()
    shape = plain.get_parameter("video_text_proj_in.weight").shape
    only = kinds("text_embedding_projection.video_aggregate_embed", *shape)["DoRA"]
    return saved(tmp_path, {**only, **load_file(files.camera_lora)})


class Hidden:
    unique_id = "1"


def test_layers_of_the_connectors_through_the_node(
    files: TinyFiles, connector_lora: lora.Lora, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The linked text encoder comes back with the LoRA in its connectors; Gemma is not loaded again."""
    checkpoint: Checkpoint = load_checkpoint(files.checkpoint)
    gemma = load_gemma(files.gemma, torch.float32)
    expected = checkpoint.connectors(torch.float32)
    with lora.applied(expected, [(connector_lora, 0.5)], checkpoint.connectors_weight):
        wanted = encode_text(gemma, expected, "a person speaks")
    plain = encode_text(gemma, expected, "a person speaks")
    assert not torch.equal(wanted.video, plain.video)

    model = memory.hold_transformer(checkpoint.transformer, "float32")
    encoder = memory.hold_gemma(
        lambda dtype: gemma, "float32", memory.hold_connectors(checkpoint.connectors, "float32")
    )
    monkeypatch.setattr(loras, "_lora_path", lambda name: connector_lora.path)
    for each in (loras.LoraLoader, text.TextEncode):
        monkeypatch.setattr(each, "hidden", Hidden, raising=False)
    layers = len(connector_lora.changes)
    merged, report, given = loras.LoraLoader.execute(model, "x", 0.5, encoder).args
    assert f"all of its {layers} layers applied (1 DoRA, {layers - 1} LoRA); strength 0.5" in report
    assert given.gemma is encoder.gemma and given is not encoder
    for each, context in ((given, wanted), (encoder, plain), (given, wanted)):
        memory.use(each)
        assert torch.equal(encode_text(each.gemma, each.connectors.module, "a person speaks").video, context.video)
    assert "host memory" not in report
    monkeypatch.setattr(loras, "NOTABLE", 1)
    _, report, _ = loras.LoraLoader.execute(model, "x", 0.5, encoder).args
    made = sum(handle.merged_on_host for handle in (merged, given.connectors))
    assert report.endswith(f"; merged on the CPU, the changed weights take {size(made)} of host memory")
    assert made > merged.merged_on_host > 0
    alone, report, none = loras.LoraLoader.execute(model, "x", 0.5).args
    assert none is None and "1 left out" in report and "link text_encoder" in report
    assert len(merged.patcher.patches) == len(alone.patcher.patches) == layers - 1
    with pytest.raises(InputError, match="text_encoder: nothing comes in"):
        text.TextEncode.execute(none, "a person speaks")


def test_what_cannot_be_used_is_told_when_the_graph_is_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lora.safetensors"
    pair = kinds("diffusion_model.proj_in", 12, 8)["LoRA"]
    for name in ("_lora_path", "_camera_path", "_distilled_path"):
        monkeypatch.setattr(loras, name, lambda name: path)

    def verdicts() -> set[bool | str]:
        return {
            loras.LoraLoader.validate_inputs("x"),
            loras.CameraLora.validate_inputs("dolly_in"),
            loras.DistilledLora.validate_inputs("x"),
        }

    save_file(pair, path)
    assert verdicts() == {True}
    save_file(pair, path, {"reference_downscale_factor": "2"})
    told, accepted = sorted(verdicts(), key=lambda each: each is True)  # Distilled and Camera LoRA are no IC-LoRAs
    assert accepted is True and told.startswith(f"{path}: is an IC-LoRA")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (told,) = verdicts()
    assert told.startswith(f"{path}: is a Git LFS pointer")
