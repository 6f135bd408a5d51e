"""Gemma from ComfyUI's single files: the numbers of the folder with the same weights, and what is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.memory.offload import offload_gemma
from a2v.ltx.prompt import expand as expansion
from a2v.ltx.prompt.expand import expand
from a2v.ltx.prompt.gemma import Gemma, check_gemma, load_gemma
from a2v.ltx.prompt.sentencepiece import CHAT
from a2v.ltx.prompt.text import encode_text, hidden_states, tokenize
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.quantized import QuantizedLinear, ScaledLinear
from a2v.tests.nodes.devices import DEVICE, Elsewhere, simulated
from a2v.tests.tiny import TinyFiles, write_gemma_file, write_tiny
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PRECISIONS = ("bf16", "fp8", "fp8_old", "fp8_plain", "fp4_mixed")
PROMPT = "A woman speaks to the camera"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """Seven layers, so that one attends to everything; a vision tower of 16 heads that pools 4×4, as the published."""
    files = write_tiny(tmp_path_factory.mktemp("tiny"), layers=1, gemma_layers=7)
    for name, changes in (
        ("config.json", {"mm_tokens_per_image": 1}),
        ("processor_config.json", {"image_seq_length": 1}),
        ("preprocessor_config.json", {"image_seq_length": 1}),
    ):
        document = json.loads((files.gemma / name).read_text()) | changes
        if name == "config.json":
            document["vision_config"]["num_attention_heads"] = 16
        (files.gemma / name).write_text(json.dumps(document))
    return files


Pair = tuple[Gemma, Gemma]


@pytest.fixture(scope="module", params=PRECISIONS)
def pair(request: pytest.FixtureRequest, tiny: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """(from the file, from a folder of the same weights written out in float32), both computing in float32."""
    folder = Path(shutil.copytree(tiny.gemma, tmp_path_factory.mktemp(request.param) / "gemma"))
    path = folder.parent / f"gemma_3_12B_it_{request.param}.safetensors"
    weights = write_gemma_file(folder, path, request.param)
    save_file({k: w.float() for k, w in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return load_gemma(path, torch.float32), load_gemma(folder, torch.float32)


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.randint(256, (30, 45, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def kinds(model: nn.Module) -> dict[str, set[str]]:
    """Class of a linear layer → the parts of the language model whose layers are of it."""
    found: dict[str, set[str]] = {}
    for name, module in model.model.language_model.named_modules():
        if isinstance(module, nn.Linear):
            found.setdefault(type(module).__name__, set()).add(".".join(name.split(".")[1:3]))
    return found


def test_hidden_states_are_those_of_the_folder(pair: Pair) -> None:
    ours, reference = pair
    for prompt in (PROMPT, "", "light " * 160):
        (states, mask), (expected, expected_mask) = hidden_states(ours, prompt), hidden_states(reference, prompt)
        assert torch.equal(mask, expected_mask)
        torch.testing.assert_close(states, expected, rtol=0, atol=2e-5)
    assert hidden_states(ours, "a man")[0].std() > 0.1


def test_configuration_and_buffers_are_those_of_the_folder(pair: Pair) -> None:
    ours, reference = pair
    for part in ("text_config", "vision_config"):
        mine, theirs = (getattr(g.model.config, part).to_dict() for g in pair)
        skipped = {"torch_dtype", "dtype", "architectures", "_name_or_path", "transformers_version"}
        differing = {k for k in mine.keys() & theirs.keys() - skipped if mine[k] != theirs[k]}
        assert not differing, {k: (mine[k], theirs[k]) for k in differing}
    for name in ("mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"):
        assert getattr(ours.model.config, name) == getattr(reference.model.config, name), name
    assert ours.model.config._attn_implementation == reference.model.config._attn_implementation
    buffers = dict(ours.model.named_buffers())
    for name, expected in reference.model.named_buffers():
        assert torch.equal(buffers.pop(name).float(), expected.float()), name
    assert not buffers
    assert ours.model.lm_head.weight is ours.model.get_input_embeddings().weight
    assert not ours.model.training and not any(p.requires_grad for p in ours.model.parameters())


def test_ids_are_those_of_the_folder(pair: Pair) -> None:
    for text in (
        PROMPT,
        " \n\n  héllo wörld 你好 😀\n",
        "<start_of_turn>talking<end_of_turn>\t1234",
        "",
        "▁ ▁▁ <0x41>",
    ):
        assert tokenize(pair[0], text) == tokenize(pair[1], text)


def test_an_image_is_seen_as_by_the_folder(pair: Pair, picture: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "NEW_TOKENS", 6)
    monkeypatch.setattr(pair[1].tokenizer, "chat_template", CHAT)
    for gemma in pair:
        assert gemma.sees
    for image in (picture, None):
        mine, theirs = (expand(gemma, PROMPT, seed=3, image=image) for gemma in pair)
        assert mine == theirs
    asked = expansion.chat(pair[0], PROMPT, image=True)
    options = {"add_special_tokens": False, "return_tensors": "pt"}
    given = [g.processor(text=asked, images=expansion._resize(picture), **options) for g in pair]
    assert torch.equal(given[0]["input_ids"], given[1]["input_ids"])
    assert torch.equal(given[0]["pixel_values"], given[1]["pixel_values"])
    with torch.no_grad():
        logits = [g.model(**given[0]).logits for g in pair]
    torch.testing.assert_close(*logits, rtol=0, atol=2e-5)


def test_weights_stay_as_they_are_stored(pair: Pair, tiny: TinyFiles) -> None:
    ours, _ = pair
    precision = ours.path.stem.removeprefix("gemma_3_12B_it_")
    everything = {f"{i}.{part}" for i in range(7) for part in ("self_attn", "mlp")}
    expected = {"QuantizedLinear": everything} if precision.startswith("fp8") else {"Linear": everything}
    if precision == "fp4_mixed":
        expected = {
            "Linear": {"0.self_attn", "0.mlp"},
            "QuantizedLinear": {f"{i}.self_attn" for i in range(1, 7)},
            "ScaledLinear": {f"{i}.mlp" for i in range(1, 7)},
        }
    assert kinds(ours.model) == expected
    language = ours.model.model.language_model
    layers = [m for m in language.modules() if isinstance(m, QuantizedLinear)]
    values = sum(m.in_features * m.out_features for m in layers)
    stored = sum(p.nbytes for m in layers for p in m.parameters())
    packed = sum(m.in_features * m.out_features for m in layers if isinstance(m, ScaledLinear))
    # a byte a value; of NVFP4 half a byte, and a byte for 16 values in tiles that so small a layer does not fill
    tiles = sum(m.weight_scale.numel() for m in layers if isinstance(m, ScaledLinear))
    assert stored == values - packed // 2 + tiles
    before = {name: p.clone() for name, p in ours.model.named_parameters() if p.dtype == torch.uint8}
    ours.model.to(torch.bfloat16).to(torch.float32)
    assert all(torch.equal(ours.model.get_parameter(name), p) for name, p in before.items())


def test_weights_map_the_file(tiny: TinyFiles, tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    path = tmp_path / "gemma_mapped.safetensors"
    write_gemma_file(tiny.gemma, path, "fp4_mixed")
    gemma = load_gemma(path)
    assert gemma.model.dtype == torch.bfloat16
    ranges = [
        tuple(int(x, 16) for x in line.split()[0].split("-"))
        for line in maps.read_text().splitlines()
        if line.endswith(path.name)
    ]
    for name, parameter in gemma.model.named_parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in ranges), name


def test_the_context_in_bfloat16(tiny: TinyFiles, tmp_path: Path) -> None:
    path = tmp_path / "gemma.safetensors"
    write_gemma_file(tiny.gemma, path)
    connectors = load_checkpoint(tiny.checkpoint).connectors()
    contexts = [encode_text(load_gemma(source), connectors, PROMPT) for source in (path, tiny.gemma)]
    assert torch.equal(contexts[0].video, contexts[1].video) and torch.equal(contexts[0].audio, contexts[1].audio)


@pytest.mark.parametrize("kind", ["folder", "file", "fp4_mixed"])
def test_fp8_storage(tiny: TinyFiles, tmp_path: Path, kind: str) -> None:
    path = tiny.gemma if kind == "folder" else tmp_path / "gemma.safetensors"
    if kind != "folder":
        write_gemma_file(tiny.gemma, path, "bf16" if kind == "file" else kind)
    plain, small = load_gemma(path, torch.float32), load_gemma(path, torch.float32, fp8="cpu")
    assert "Linear" not in kinds(small.model) and ("ScaledLinear" in kinds(small.model)) == (kind == "fp4_mixed")
    assert {p.dtype for p in small.model.parameters()} == {torch.float32, torch.uint8}
    assert small.model.lm_head.weight is small.model.get_input_embeddings().weight
    for (name, mine), (_, theirs) in zip(small.model.named_buffers(), plain.model.named_buffers(), strict=True):
        assert torch.equal(mine, theirs), name
    expected, states = (hidden_states(g, PROMPT)[0] for g in (plain, small))
    off = (states - expected).norm() / expected.norm()
    assert 1e-4 < off < 0.15
    for name, layer in small.model.named_modules():
        if type(layer) is QuantizedLinear and kind != "fp4_mixed":  # three bits after the first, or the grid's end
            weight = plain.model.get_submodule(name).weight
            most = weight.abs().amax(1, keepdim=True)
            assert (
                (layer.decoded() - weight).abs() <= torch.maximum(weight.abs() / 16, most / 448 / 1024 * 1.01)
            ).all()


@pytest.mark.parametrize("vision", [True, False])
def test_layers_that_wait_in_host_memory(tiny: TinyFiles, tmp_path: Path, vision: bool) -> None:
    path = tmp_path / "gemma.safetensors"
    write_gemma_file(tiny.gemma, path, "fp4_mixed", vision=vision)
    gemma = load_gemma(path, torch.float32)
    expected, _ = hidden_states(gemma, PROMPT)
    with simulated(), offload_gemma(gemma.model, DEVICE):
        states, _ = hidden_states(gemma, PROMPT)
        assert isinstance(states, Elsewhere)
        torch.testing.assert_close(states.cpu(), expected, rtol=0, atol=2e-5)  # attention takes another path there


def test_without_a_vision_tower_text_is_read_and_written(
    tiny: TinyFiles, tmp_path: Path, picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "blind.safetensors", tmp_path / "whole.safetensors"
    write_gemma_file(tiny.gemma, path, "fp8", vision=False)
    write_gemma_file(tiny.gemma, whole, "fp8")
    blind, seeing = load_gemma(path, torch.float32), load_gemma(whole, torch.float32)
    assert not blind.sees
    assert torch.equal(hidden_states(blind, PROMPT)[0], hidden_states(seeing, PROMPT)[0])
    monkeypatch.setattr(expansion, "NEW_TOKENS", 6)
    plain = expand(seeing, PROMPT, seed=1)
    assert plain.expanded and "image" not in (plain.reason or "")
    without = expand(blind, PROMPT, seed=1, image=picture)
    assert without.expanded and without.prompt == plain.prompt
    assert without.reason is not None and "image" in without.reason and path.name in without.reason
    assert expand(blind, PROMPT, seed=1) == plain
    nothing = expand(blind, " ", seed=1, image=picture)
    assert not nothing.expanded and nothing.prompt == " " and path.name in nothing.reason


@pytest.mark.parametrize("style", ["repository", "transformers"])
def test_other_names_of_the_same_tensors(tiny: TinyFiles, tmp_path: Path, style: str) -> None:
    path = tmp_path / "gemma.safetensors"
    write_gemma_file(tiny.gemma, path)
    expected, _ = hidden_states(load_gemma(path, torch.float32), PROMPT)
    tensors = load_file(tiny.gemma / "model.safetensors") | {"spiece_model": load_file(path)["spiece_model"]}
    if style == "transformers":
        tensors = {
            "model." + key.replace("language_model.model.", "language_model.") if "." in key else key: tensor
            for key, tensor in tensors.items()
        }
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    gemma = load_gemma(path, torch.float32)
    assert gemma.sees and torch.equal(hidden_states(gemma, PROMPT)[0], expected)


# What is refused.

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def changed(tiny: TinyFiles, tmp_path: Path) -> Callable[..., Path]:
    """changed(change, precision): a single file after a change to its tensors."""

    def write(change: Change, precision: str = "bf16") -> Path:
        path = tmp_path / "gemma.safetensors"
        write_gemma_file(tiny.gemma, path, precision)
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        return path

    return write


Refusal = Callable[..., contextlib.AbstractContextManager[None]]


def test_another_model(tiny: TinyFiles, tmp_path: Path, refusal: Refusal) -> None:
    t5 = tmp_path / "t5xxl_fp16.safetensors"
    save_file({"encoder.block.0.layer.0.SelfAttention.k.weight": torch.zeros(4, 4), "spiece_model": torch.zeros(4)}, t5)
    for path in (t5, tiny.checkpoint, tiny.upscaler, tiny.distilled_lora):
        with refusal(path, "not Gemma 3", "gemma_3_12B_it_fp4_mixed.safetensors"):
            load_gemma(path)


@pytest.mark.parametrize("missing", ["layers.0.self_attn.q_norm", "layers.0.post_feedforward_layernorm"])
def test_an_older_gemma(changed: Callable[..., Path], refusal: Refusal, missing: str) -> None:
    path = changed(lambda t: t.pop(f"model.{missing}.weight"))
    with refusal(path, "not Gemma 3"):
        load_gemma(path)


def test_a_newer_gemma(changed: Callable[..., Path], refusal: Refusal) -> None:
    path = changed(lambda t: t.update({"model.layers.0.layer_scalar": torch.ones(1)}))
    with refusal(path, "layers.0.layer_scalar"):
        load_gemma(path)


def test_no_tokenizer_in_the_file(changed: Callable[..., Path], refusal: Refusal) -> None:
    path = changed(lambda t: t.pop("spiece_model"))
    with refusal(path, "tokenizer", "gemma_3_12B_it.safetensors"):
        load_gemma(path)


@pytest.mark.parametrize("size", [0, 5, 2000, -10])
def test_a_damaged_tokenizer(changed: Callable[..., Path], refusal: Refusal, size: int) -> None:
    path = changed(lambda t: t.update(spiece_model=t["spiece_model"][:size].clone()))
    with refusal(path, "tokenizer"):
        load_gemma(path)


def test_a_file_cut_short(changed: Callable[..., Path], refusal: Refusal) -> None:
    path = changed(lambda t: None)
    path.write_bytes(path.read_bytes()[:-1000])
    with refusal(path, "gemma_3_12B_it"):
        load_gemma(path)


def test_gguf_and_what_is_not_there(tmp_path: Path, refusal: Refusal) -> None:
    path = tmp_path / "gemma-3-12b-it-Q4_K_M.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3))
    with refusal(path, "GGUF", "gemma_3_12B_it_fp4_mixed.safetensors"):
        load_gemma(path)
    with refusal(tmp_path / "absent.safetensors", "not found", "gemma_3_12B_it"):
        load_gemma(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("precision", "change", "words"),
    [
        ("bf16", lambda t: t.pop("model.layers.3.mlp.up_proj.weight"), "lacks model.language_model.layers.3.mlp"),
        ("bf16", lambda t: t.pop("model.norm.weight"), "model.language_model.norm.weight"),
        ("bf16", lambda t: t.update({"model.layers.3.mlp.up_proj.weight": torch.zeros(2, 2)}), "(2, 2)"),
        ("bf16", lambda t: t.update({"model.layers.3.input_layernorm.weight": torch.zeros(32).long()}), "int64"),
        ("bf16", lambda t: t.pop("vision_model.post_layernorm.bias"), "post_layernorm.bias"),
        ("fp4_mixed", lambda t: t.pop("model.layers.3.mlp.up_proj.weight_scale_2"), "up_proj.weight"),
        ("fp4_mixed", lambda t: t.pop("model.layers.3.mlp.up_proj.weight_scale"), "up_proj.weight"),
        ("fp8", lambda t: t.update({"model.layers.3.mlp.up_proj.weight_scale": torch.ones(3)}), "scale"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(
    changed: Callable[..., Path], refusal: Refusal, precision: str, change: Change, words: str
) -> None:
    path = changed(change, precision)
    with refusal(path, words, "gemma_3_12B_it"):
        load_gemma(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_norm.weight", (0,)),
        ("model.layers.0.self_attn.q_proj.weight", ()),
        ("model.norm.weight", (3, 3)),
        ("vision_model.embeddings.patch_embedding.weight", (3, 3)),
    ],
)
def test_tensors_that_tell_no_size(
    changed: Callable[..., Path], refusal: Refusal, name: str, shape: tuple[int, ...]
) -> None:
    path = changed(lambda t: t.update({name: torch.zeros(shape)}))
    with refusal(path, "shapes", "gemma_3_12B_it"):
        check_gemma(path)


def test_without_a_note_the_tensors_tell_the_format(changed: Callable[..., Path]) -> None:
    """As in official files. A part of NVFP4 without its second scale is refused above, not read as bytes."""
    name = "model.language_model.layers.3.mlp.up_proj"
    told, untold = (
        load_gemma(changed(change, "fp4_mixed")).model.get_submodule(name)
        for change in (lambda t: None, lambda t: t.pop("model.layers.3.mlp.up_proj.comfy_quant"))
    )
    assert isinstance(untold, ScaledLinear) and torch.equal(untold.decoded(), told.decoded())


@pytest.mark.parametrize("mark", [b'{"format": "int8_tensorwise"}', b'{"format": "mxfp8"}', b"{", b"[]"])
def test_a_format_that_is_not_read(changed: Callable[..., Path], refusal: Refusal, mark: bytes) -> None:
    tensor = torch.frombuffer(bytearray(mark), dtype=torch.uint8)
    path = changed(lambda t: t.update({"model.layers.3.mlp.up_proj.comfy_quant": tensor}), "fp8")
    with refusal(path, "gemma_3_12B_it"):
        load_gemma(path)


def test_a_smoothed_weight_is_not_read_as_a_plain_one(changed: Callable[..., Path], refusal: Refusal) -> None:
    path = changed(lambda t: t.update({"model.layers.3.mlp.up_proj.pre_quant_scale": torch.ones(32)}), "fp4_mixed")
    with refusal(path, "pre_quant_scale"):
        load_gemma(path)


def test_a_gemma_of_another_size_than_the_checkpoint(tiny: TinyFiles, tmp_path: Path) -> None:
    path = tmp_path / "gemma.safetensors"
    write_gemma_file(tiny.gemma, path)
    other = write_tiny(tmp_path / "other", layers=1)
    with pytest.raises(InputError, match=r"8 hidden states of width 32.* 4 of width 32"):
        encode_text(load_gemma(path), load_checkpoint(other.checkpoint).connectors(), PROMPT)
