"""LTX-2.5's text encoder: its hidden states against transformers' own model run as the official code runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx.memory.encoder import mapped_bytes, text_encoder
from a2v.ltx.models import MODELS
from a2v.ltx.prompt.expand import expand
from a2v.ltx.prompt.gemma import Gemma, check_gemma, load_gemma
from a2v.ltx.prompt.text import encode_text, hidden_states, tokenize
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.quantized import ScaledLinear
from a2v.tests import layouts
from a2v.tests.ltx.goldens import RUNS_25, Golden25
from a2v.tests.tiny25 import Tiny25Files, write_tiny25
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", minversion="5.10.1")
WORDS = "  a woman speaks to the camera "


@pytest.fixture(scope="module", params=[{}, {"gemma_layers": 6, "gemma_width": 64}], ids=["small", "larger"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny25Files:
    return write_tiny25(tmp_path_factory.mktemp("tiny25"), **request.param)


def peer(path: Path) -> nn.Module:
    """transformers' own model with all its parts on the CPU, filled by hand."""
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["gemma_config"])
    text = transformers.Gemma4UnifiedConfig(text_config=config["text_config"], vision_config=None, audio_config=None)
    model = transformers.Gemma4UnifiedForConditionalGeneration(text).eval().float()
    stored = {
        key.replace("model.", "model.language_model.", 1): tensor.float()
        for key, tensor in load_file(path).items()
        if key.startswith("model.")
    }
    missing, unknown = model.load_state_dict(stored, strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}
    language = model.model.language_model
    language.embed_tokens.embed_scale = torch.tensor(config["text_config"]["hidden_size"] ** 0.5)
    return language


def padded(language: nn.Module, ids: list[int], length: int = 1024) -> tuple[Tensor, ...]:
    """As the official code does: padded on the left with id 0, under a mask."""
    lacking = length - len(ids)
    with torch.no_grad():
        return language(
            input_ids=torch.tensor([[0] * lacking + ids]),
            attention_mask=torch.tensor([[0] * lacking + [1] * len(ids)]),
            position_ids=torch.arange(length)[None],
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states


def test_hidden_states(files: Tiny25Files, off: Callable) -> None:
    gemma = load_gemma(files.text_encoder, torch.float32)
    ids = tokenize(gemma, WORDS)
    states, mask = hidden_states(gemma, WORDS)
    assert mask.sum() == len(ids) and mask[0, -len(ids) :].all()
    for ours, theirs in zip(states, padded(peer(files.text_encoder), ids), strict=True):
        assert off(ours[:, -len(ids) :], theirs[:, -len(ids) :]) < 1e-5


def quantized(source: Path, path: Path, kind: str) -> Path:
    """The text encoder as `…-comfy-int8-convrot` has it: linear layers, the text projection and, with a scale a row,
    the embeddings. Returns a file in bfloat16 that means the same."""
    pytest.importorskip("comfy_kitchen")
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    tensors, meaning = load_file(source), {}
    written = dict(tensors)
    for key, tensor in tensors.items():
        layer = key.removesuffix(".weight")
        embeddings = key.endswith("embed_tokens.weight")
        if not (embeddings or layer.endswith("proj") or ("aggregate" in layer and key != layer)):
            continue
        parts, note, meaning[key] = layouts.blocks_of(tensor.float(), "int8_rows" if embeddings else kind)
        written |= {f"{layer}.{name}": part for name, part in parts.items()}
        written[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
    assert len(meaning) > 10
    save_file(written, path, metadata)
    exact = path.with_name("exact.safetensors")
    save_file({key: meaning.get(key, tensor) for key, tensor in tensors.items()}, exact, metadata)
    return exact


@pytest.mark.parametrize("kind", ["convrot", "nvfp4"])
def test_small_weights(files: Tiny25Files, tmp_path: Path, off: Callable, kind: str) -> None:
    path = tmp_path / "gemma4-small-with-proj-ltx-2.5.safetensors"
    exact = quantized(files.text_encoder, path, kind)
    states, _ = hidden_states(load_gemma(path, torch.float32), WORDS)
    for ours, theirs in zip(states, hidden_states(load_gemma(exact, torch.float32), WORDS)[0], strict=True):
        assert off(ours, theirs) < 1e-4
    layers = [m for m in load_gemma(path).model.modules() if isinstance(m, ScaledLinear)]
    assert len(layers) > 10 and all(layer.weight.dtype == torch.uint8 for layer in layers)
    ours, theirs = (
        load_checkpoint(files.transformer, video_vae=files.video_vae, audio_vae=files.audio_vae, text_encoder=each)
        for each in (path, exact)
    )
    x = torch.randn(1, 3, ours.connectors().video_text_proj_in.in_features)
    a, b = (each.connectors(torch.float32).video_text_proj_in(x) for each in (ours, theirs))
    assert off(a, b) < 1e-4


def test_the_forecast_counts_embeddings_as_they_are_decoded(files: Tiny25Files, tmp_path: Path) -> None:
    """The linear layers map the file; the embeddings are a new tensor of 16 bits."""
    path = tmp_path / "gemma4-small-with-proj-ltx-2.5.safetensors"
    quantized(files.text_encoder, path, "convrot")
    model = load_gemma(path).model
    loaded = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    table = model.get_input_embeddings().weight
    beside = sum(t.nbytes for n, t in load_file(path).items() if n.endswith(("comfy_quant", "weight_scale")))
    assert beside < table.nbytes / 2
    assert abs(text_encoder(path, torch.bfloat16)[0] - sum(loaded.values())) <= beside
    assert abs(mapped_bytes(path, torch.bfloat16) - (sum(loaded.values()) - table.nbytes)) <= beside


def test_a_prompt_begins_with_bos_and_has_no_end(files: Tiny25Files) -> None:
    """Its tokenizer adds neither; a prompt in the chat's format would have more."""
    gemma = load_gemma(files.text_encoder)
    words = gemma.tokenizer(WORDS.strip()).input_ids
    assert 2 not in words
    assert tokenize(gemma, WORDS) == [2, *words]
    assert tokenize(gemma, "") == [2]


def test_it_writes_no_prompt(files: Tiny25Files) -> None:
    """It is no chat model: the prompt is used as written, and the report says why."""
    expansion = expand(load_gemma(files.text_encoder), "a singer", seed=1)
    assert (expansion.prompt, expansion.expanded) == ("a singer", False)
    assert files.text_encoder.name in expansion.reason


def test_only_the_language_model_is_built(files: Tiny25Files) -> None:
    gemma = load_gemma(files.text_encoder)
    assert not gemma.writes and not gemma.sees
    assert {name.split(".")[1] for name, _ in gemma.model.named_parameters()} <= {"language_model", "weight"}
    mapped = gemma.model.model.language_model.layers[1].mlp.up_proj.weight
    assert torch.equal(mapped, load_file(files.text_encoder)["model.layers.1.mlp.up_proj.weight"])


def test_float32_has_an_exact_scale_of_the_embeddings(files: Tiny25Files) -> None:
    """The trap: a scale rounded to bfloat16 is off by 1e-4."""
    gemma = load_gemma(files.text_encoder, torch.float32)
    width = gemma.model.config.text_config.hidden_size
    assert float(gemma.model.model.language_model.embed_tokens.embed_scale) == pytest.approx(width**0.5, rel=1e-7)


def write_folder(source: Path, to: Path) -> Path:
    """A text encoder's file as two folders. Returns that of the weights."""
    folder = to / "text_encoder"
    (to / "tokenizer").mkdir()
    folder.mkdir()
    tensors = load_file(source)
    with safe_open(source, "pt") as file:
        (folder / "config.json").write_text(file.metadata()["gemma_config"])
    for name, file in (
        ("tokenizer_json", "tokenizer.json"),
        ("hf_asset__tokenizer_config.json", "tokenizer_config.json"),
    ):
        (to / "tokenizer" / file).write_bytes(tensors[name].numpy().tobytes())
    kept = {k.replace("model.", "model.language_model.", 1): t for k, t in tensors.items() if k.startswith("model.")}
    save_file(kept, folder / "model.safetensors")
    return folder


def test_a_folder(files: Tiny25Files, tmp_path: Path) -> None:
    """A diffusers folder has the encoder and its tokenizer in two folders beside the transformer's."""
    folder = write_folder(files.text_encoder, tmp_path)
    ours, theirs = load_gemma(folder), load_gemma(files.text_encoder)
    assert tokenize(ours, WORDS) == tokenize(theirs, WORDS)
    expected = theirs.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.model.state_dict().items())


def test_a_folder_without_a_tokenizer(files: Tiny25Files, tmp_path: Path, refusal: Callable) -> None:
    folder = write_folder(files.text_encoder, tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    with refusal(folder / "tokenizer.json", "not found", MODELS["text-encoder-2.5"].name):
        check_gemma(folder)


Change = Callable[[dict[str, Tensor], dict[str, Any]], object]
Q_NORM, V_PROJ = "model.layers.0.self_attn.q_norm.weight", "model.layers.{}.self_attn.v_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, _: t.update({Q_NORM: torch.zeros(())}), "Gemma 4's shapes"),
        (lambda t, _: t.update({Q_NORM: torch.zeros(0)}), "Gemma 4's shapes"),
        (lambda t, _: t.update({"model.embed_tokens.weight": torch.zeros(5)}), "Gemma 4's shapes"),
        (lambda t, _: [t.pop(V_PROJ.format(n), None) for n in range(9)], "no layer has values"),
        (lambda t, _: t.update({V_PROJ.format(n): torch.zeros(1, 1) for n in range(9)}), "every layer has values"),
        (lambda _, config: config.update(text_config=5), "not an object"),
        (lambda _, config: config["text_config"].update(hidden_size="wide"), "describes no Gemma 4"),
        (lambda _, config: config["text_config"].update(num_hidden_layers=50), "describes no Gemma 4"),
        (lambda _, config: config["text_config"].update(bos_token_id=10**7), "token 10000000"),
        (lambda t, _: t.update(tokenizer_json=torch.tensor(7, dtype=torch.int32)), "tokenizer cannot be read"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_told_in_one_sentence(
    files: Tiny25Files, tmp_path: Path, refusal: Callable, change: Change, words: str
) -> None:
    path, tensors = tmp_path / "gemma4.safetensors", load_file(files.text_encoder)
    with safe_open(files.text_encoder, "pt") as file:
        config = json.loads(file.metadata()["gemma_config"])
    change(tensors, config)
    save_file(tensors, path, {"gemma_config": json.dumps(config)})
    with refusal(path, words, MODELS["text-encoder-2.5"].name):
        load_gemma(path)


def test_golden_states(oracle: Path, tmp_path: Path, off: Callable) -> None:
    golden = Golden25(oracle, RUNS_25[1], tmp_path)
    files = golden.files(tmp_path / "out.mp4")
    gemma: Gemma = load_gemma(files.text_encoder, torch.float32)
    words = golden.info["prompt"]
    states, mask = hidden_states(gemma, words)
    tokens = int(mask.sum())
    expected = golden.file.get_tensor("prompt/0/hidden_states")
    for ours, theirs in zip(states, expected, strict=True):
        assert off(ours[:, -tokens:], theirs[:, -tokens:]) < 1e-5
    checkpoint = load_checkpoint(files.checkpoint, text_encoder=files.text_encoder)
    context = encode_text(gemma, checkpoint.connectors(torch.float32), words)
    assert off(context.video, golden.file.get_tensor("prompt/0/video_enc")) < 1e-5
