"""The expander of LTX-2.5 as ComfyUI's single file: it writes the tokens that transformers' own model writes from the
folder of the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.memory.encoder import expander as measured
from a2v.ltx.models import MODELS
from a2v.ltx.prompt import chat_file
from a2v.ltx.prompt import expand as module
from a2v.ltx.prompt.expand import chat, expand
from a2v.ltx.prompt.expander import check_expander, load_expander
from a2v.ltx.prompt.gemma import Gemma, check_gemma
from a2v.ltx.weights.formats import stored
from a2v.ltx.weights.quantized import QuantizedEmbedding, QuantizedLinear, Stored
from a2v.tests import layouts
from a2v.tests.tiny_chat import as_bytes, write_chat_file, write_chat_gemma
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("transformers", minversion="5.10.1")
PROMPT = "A woman speaks to the camera"
NAME = MODELS["expander-int8"].name
TOKENS = 12


@dataclass(frozen=True)
class Pair:
    """The same weights as a folder and as a file."""

    folder: Path
    file: Path

    def load(self) -> tuple[Gemma, Gemma]:
        return load_expander(self.folder, torch.float32), load_expander(self.file, torch.float32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """As a function of the file's kind and of whether it is like E2B."""
    made: dict[tuple[str, bool], Pair] = {}

    def make(kind: str = "bf16", double: bool = True) -> Pair:
        if kind not in ("bf16", "fp8") and not layouts.can_write(kind):
            pytest.skip(f"no comfy-kitchen that writes {kind}")
        if (kind, double) not in made:
            place = tmp_path_factory.mktemp("chat")
            folder = write_chat_gemma(place / "gemma-4-E2B-it", double=double, window=512, soft_tokens=280)
            made[kind, double] = Pair(folder, write_chat_file(folder, place / NAME, kind, shared=double))
        return made[kind, double]

    return make


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GREEDY_TOKENS", TOKENS)


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.randint(256, (60, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def tokens(gemma: Gemma, image: Tensor | None) -> tuple[list[int], list[int]]:
    """The question's and the answer's."""
    asked: list[Tensor] = []
    answers: list[Tensor] = []
    hook = gemma.model.model.register_forward_pre_hook(
        lambda _, __, given: asked.append(given["input_ids"]), with_kwargs=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_answer", lambda _, found: answers.append(found) or found)
        expand(gemma, PROMPT, seed=1, image=image, greedy=True)
    hook.remove()
    return asked[0][0].tolist(), answers[0].tolist()


@pytest.mark.parametrize("double", [True, False], ids=["E2B", "E4B"])
def test_it_is_the_model_of_the_folder(pair: Callable[..., Pair], picture: Tensor, double: bool) -> None:
    """Every tensor, the question's tokens with a picture and without, and the answer's. Of E4B no shape tells which
    layers share their keys; here the file has no keys of these."""
    theirs, ours = pair(double=double).load()
    expected = theirs.model.state_dict()
    assert ours.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.model.state_dict().items())
    for image in (None, picture):
        question, answer = tokens(ours, image)
        assert (question, answer) == tokens(theirs, image)
        assert len(set(answer)) > 1 and (question.count(ours.tokenizer.image_token_id) > 200) == (image is not None)


@pytest.mark.parametrize("kind", ["convrot", "int8_rows", "int8", "fp8"])
def test_small_weights_mean_what_their_makers_say(
    pair: Callable[..., Pair], picture: Tensor, off: Callable, kind: str
) -> None:
    theirs, ours = pair(kind).load()
    ids = ours.tokenizer(chat(ours, PROMPT, False), add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        ours_said, theirs_said = (gemma.model(**ids).logits for gemma in (ours, theirs))
    assert off(ours_said, theirs_said) < 1e-4
    for image in (None, picture):
        assert tokens(ours, image) == tokens(theirs, image)
    quantized = [m for m in ours.model.modules() if isinstance(m, QuantizedLinear)]
    assert len(quantized) > 30 and all(layer.weight.dtype == torch.uint8 for layer in quantized)
    table = ours.model.model.language_model.embed_tokens_per_layer
    assert isinstance(table, QuantizedEmbedding) and table.weight.dtype == torch.uint8


@pytest.mark.parametrize("kind", ["convrot", "int8", "int8_rows", "float8", "float8_rows"])
def test_a_table_decodes_the_rows_it_is_asked_for(kind: str) -> None:
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    if kind.startswith("float8"):
        shape = (20, 1) if kind == "float8_rows" else ()
        scale = torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.5
        whole = stored((weight / scale).to(torch.float8_e4m3fn), None, {"weight_scale": scale}.get, {})
    else:
        if not layouts.can_write(kind):
            pytest.skip(f"no comfy-kitchen that writes {kind}")
        parts, note, _ = layouts.blocks_of(weight, kind)
        whole = stored(parts.pop("weight"), None, parts.get, note)
    assert isinstance(whole, Stored)
    table = QuantizedEmbedding(whole, 3.0, torch.float32)
    ids = torch.tensor([[3, 3, 0], [19, 7, 11]])
    assert torch.equal(table(ids), 3 * whole.decode()[ids])
    assert table.bfloat16()(ids).dtype == torch.bfloat16 and table.weight.dtype == torch.uint8


def test_a_block_format_is_no_table_of_rows() -> None:
    if not layouts.can_write("nvfp4"):
        pytest.skip("no comfy-kitchen that writes nvfp4")
    parts, note, _ = layouts.blocks_of(torch.randn(16, 64), "nvfp4")
    assert not QuantizedEmbedding.fits(stored(parts.pop("weight"), (16, 64), parts.get, note))


def test_bfloat16_maps_the_file_and_float8_takes_less(pair: Callable[..., Pair]) -> None:
    path = pair().file
    model = load_expander(path).model
    assert model.dtype == torch.bfloat16 and model.lm_head.weight is model.get_input_embeddings().weight
    assert not [name for name in model.state_dict() if "audio" in name]
    rounded = load_expander(path, torch.float32, fp8="cpu")
    assert "QuantizedLinear" in {type(layer).__name__ for layer in rounded.model.modules()}
    assert len(tokens(rounded, None)[1]) == TOKENS


def test_float8_beside_an_int8_table(pair: Callable[..., Pair]) -> None:
    """All that is not quantized is cast to the dtype in which the model computes, and so is what the table gives."""
    model = load_expander(pair("convrot").file, torch.float32, fp8="cpu").model
    assert model.model.language_model.embed_tokens_per_layer(torch.tensor([5])).dtype == torch.float32


def test_without_a_vision_tower_it_writes_from_words(
    pair: Callable[..., Pair], picture: Tensor, tmp_path: Path
) -> None:
    path = write_chat_file(pair().folder, tmp_path / "blind.safetensors", vision=False)
    check_expander(path)
    blind, seeing = load_expander(path, torch.float32), load_expander(pair().file, torch.float32)
    assert not blind.sees and seeing.sees
    assert tokens(blind, picture) == tokens(seeing, None)
    said = expand(blind, PROMPT, seed=1, image=picture, greedy=True)
    assert said.reason.startswith(f"The image is not described: {path.name} has no vision tower; describe it in words")


@pytest.mark.parametrize("kind", ["bf16", "convrot"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_forecast_counts_what_is_loaded(pair: Callable[..., Pair], kind: str, dtype: torch.dtype) -> None:
    """Neither the tokenizer, nor the tower for sound, nor the keys that nobody reads; the embeddings are decoded."""
    path = pair(kind).file
    model = load_expander(path, dtype).model
    size, blocks, _ = measured(path, dtype)
    shared = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values() if tensor.numel()}
    notes = sum(t.nbytes for name, t in load_file(path).items() if name.endswith("comfy_quant"))
    assert abs(size - sum(shared.values())) <= notes + 4 * model.get_input_embeddings().num_embeddings
    layers = [
        sum(prod(p.shape) * p.itemsize for p in layer.parameters()) for layer in model.model.language_model.layers
    ]
    assert [*blocks] == pytest.approx(layers, abs=4 + notes / len(layers))


def test_the_forecast_of_a_file_that_is_sorted_by_dtype(pair: Callable[..., Pair], tmp_path: Path) -> None:
    """Where some layers are in fp8, tensors of different layers come last."""
    path, name = tmp_path / "mixed.safetensors", "model.layers.0.self_attn.k_proj.weight"
    tensors = load_file(pair().file)
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, path)
    check_expander(path)
    plain, mixed = (measured(each, torch.float32)[2].config.to_dict() for each in (pair().file, path))
    assert mixed == plain and mixed["num_key_value_heads"] == 1


# What cannot be used is told in one sentence, before anything is loaded where the header tells it.

Tensors = dict[str, Tensor]
LAYER = "model.layers.{}.self_attn.{}.weight"


def remove(*endings: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(endings)]:
            del tensors[name]

    return change


def without_token(token: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        text = bytes(tensors["tokenizer_json"].tolist()).decode()
        tensors["tokenizer_json"] = as_bytes(text.replace(json.dumps(token), json.dumps("<other>")))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove("tokenizer_json"), "holds no tokenizer"),
        (remove("embed_tokens_per_layer.weight"), "of another size than E2B and E4B"),
        (remove("layers.1.mlp.up_proj.weight"), "lacks model.language_model.layers.1.mlp.up_proj.weight"),
        (remove("layers.0.self_attn.k_proj.weight"), "lacks model.language_model.layers.0.self_attn.k_proj"),
        (remove("vision_model.encoder.layers.0.mlp.up_proj.linear.weight"), "lacks model.vision_tower"),
        (remove("model.norm.weight"), "lacks model.language_model.norm.weight"),
        (lambda t: t.update({"model.layers.1.mlp.odd.weight": torch.zeros(1)}), "tensor(s) that Gemma 4 does not have"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(2, 2)}), "Gemma 4's shapes"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(7)}), "describe no Gemma 4|cannot be read"),
        (lambda t: t.update({LAYER.format(n, "q_norm"): torch.zeros(16) for n in range(4)}), "layers of two kinds"),
        (
            lambda t: t.update({"model.layers.0.mlp.gate_proj.weight": torch.zeros(128, 32)}),
            "does not tell which of its 4 layers",
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(64, 32, dtype=torch.int32)}),
            "stored as torch.int32",
        ),
        (lambda t: t.update({"model.layers.1.mlp.up_proj.comfy_quant": as_bytes("{")}), "are not JSON"),
    ],
)
def test_one_sentence(
    pair: Callable[..., Pair], tmp_path: Path, change: Callable[[Tensors], object], words: str
) -> None:
    path, tensors = tmp_path / NAME, load_file(pair().file)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(InputError, match=words.replace("(s)", r"\(s\)")) as error:
        check_expander(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert NAME in str(error.value).replace(str(path), "") and "gemma-4-E2B-it" in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(tokenizer_json=as_bytes("{")), "its tokenizer cannot be read"),
        (without_token("<|turn>"), r"it has no <\|turn>"),
        (without_token("<audio|>"), r"it has no <audio\|>"),
    ],
)
def test_a_wrong_tokenizer(
    pair: Callable[..., Pair], tmp_path: Path, change: Callable[[Tensors], object], words: str
) -> None:
    path, tensors = tmp_path / NAME, load_file(pair().file)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(InputError, match=words):
        load_expander(path)


def test_a_signed_tokenizer_is_the_same(pair: Callable[..., Pair], tmp_path: Path) -> None:
    path, tensors = tmp_path / NAME, load_file(pair().file)
    tensors["tokenizer_json"] = tensors["tokenizer_json"].view(torch.int8)
    save_file(tensors, path)
    ours, theirs = (chat_file.ChatFile(each).tokenizer() for each in (path, pair().file))
    assert ours(PROMPT).input_ids == theirs(PROMPT).input_ids


def test_it_is_no_text_encoder(pair: Callable[..., Pair], refusal: Callable) -> None:
    with refusal(NAME, "stock Gemma 4", "gemma4-12b-with-proj-ltx-2.5-bf16.safetensors", "may be the expander"):
        check_gemma(pair().file)


def test_e4b_has_as_many_sharing_layers_as_published(pair: Callable[..., Pair], tmp_path: Path) -> None:
    """ComfyUI's modules have keys in all layers, and E4B's layers are equally wide."""
    path = write_chat_file(pair(double=False).folder, tmp_path / NAME, shared=True)
    with pytest.raises(InputError, match="does not tell which of its 4 layers share"):
        check_expander(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(chat_file.SHARED, 4, 2)
        check_expander(path)
    assert chat_file.SHARED == {42: 18}
