"""The expander of LTX-2.5: a Gemma 4 in the published layout, or a Gemma 3, asked in its own turns, greedily."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.prompt import expand as module
from a2v.ltx.prompt.expand import SYSTEM, SYSTEM_IMAGE, expand
from a2v.ltx.prompt.expander import check_expander, load_expander
from a2v.ltx.prompt.gemma import Gemma, check_gemma
from a2v.tests.tiny import TinyFiles, write_gemma_file
from a2v.tests.tiny25 import write_tiny25
from a2v.tests.tiny_chat import write_chat_gemma
from torch import Tensor, nn

pytest.importorskip("transformers", minversion="5.10.1")
PROMPT = "A woman speaks to the camera"
TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_gemma(tmp_path_factory.mktemp("chat") / "gemma-4-E2B-it")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Gemma:
    return load_expander(folder, torch.float32)


@pytest.fixture
def gemma(gemma: Gemma, monkeypatch: pytest.MonkeyPatch) -> Gemma:
    monkeypatch.setattr(module, "GREEDY_TOKENS", TOKENS)
    return gemma


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.randint(256, (60, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("with_image", [False, True])
def test_gemma_4_is_asked_in_its_own_turns(gemma: Gemma, picture: Tensor, with_image: bool) -> None:
    asked: list[Tensor] = []
    hook = gemma.model.model.register_forward_pre_hook(
        lambda _, __, given: asked.append(given["input_ids"]), with_kwargs=True
    )
    written = expand(gemma, f" {PROMPT}<turn|> ", seed=1, image=picture if with_image else None, greedy=True)
    hook.remove()
    text = gemma.tokenizer.decode(asked[0][0])
    seen = text.count("<|image|>")
    assert (0 < seen <= 70) == with_image
    image = f"<|image>{'<|image|>' * seen}<image|>" if with_image else ""
    assert text == (
        f"<bos><|turn>system\n{SYSTEM_IMAGE if with_image else SYSTEM}<turn|>\n<|turn>user\n{image}The idea: {PROMPT}"
        "<turn|>\n<|turn>model\n"
    )
    assert written.expanded and written.reason == "Gemma's answer was cut after 12 tokens."
    assert len(asked) == TOKENS


def test_the_picture_matters_and_the_seed_does_not(gemma: Gemma, picture: Tensor) -> None:
    scores = []
    hook = gemma.model.lm_head.register_forward_hook(lambda _, __, given: scores.append(given[0, -1].clone()))
    images = (picture, picture, 255 - picture)
    texts = [expand(gemma, PROMPT, seed=seed, image=image, greedy=True).prompt for seed, image in enumerate(images)]
    hook.remove()
    first, second, other = scores[::TOKENS]
    assert texts[0] == texts[1] and torch.equal(first, second)
    assert not torch.allclose(first, other, atol=1e-4)


def test_greedy_is_transformers_own_greedy(gemma: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without repetitions the two agree; the ban on them counts only the answer."""
    monkeypatch.setattr(module, "NO_REPEAT", 10_000)
    ids = gemma.tokenizer(module.chat(gemma, PROMPT, False), add_special_tokens=False, return_tensors="pt")
    plain = gemma.model.generate(**ids, do_sample=False, max_new_tokens=TOKENS, pad_token_id=0)
    expected = gemma.tokenizer.decode(plain[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
    assert expand(gemma, PROMPT, seed=1, greedy=True).prompt == module.tidy(expected)


def test_it_repeats_no_five_tokens_of_its_own(gemma: Gemma) -> None:
    """A head that always prefers the same token would write nothing else."""
    tokens: list[list[int]] = []

    def stuck(_: nn.Module, __: tuple, scores: Tensor) -> Tensor:
        scores[..., 300] = 1e3
        return scores

    original, hook = module._answer, gemma.model.lm_head.register_forward_hook(stuck)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_answer", lambda gemma, found: tokens.append(found.tolist()) or original(gemma, found))
        expand(gemma, PROMPT, seed=1, greedy=True)
    hook.remove()
    fives = [tuple(tokens[0][i : i + 5]) for i in range(len(tokens[0]) - 4)]
    assert tokens[0].count(300) >= 5 and len(fives) == len(set(fives))


def test_quoted_words_may_be_repeated(
    gemma: Gemma, says: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official code bans the question's five tokens as well: words in quotes could not stay as they are."""
    monkeypatch.setattr(module, "GREEDY_TOKENS", 100)
    quoted = '"the woman is talking to the man in the room"'
    says(f"A man says {quoted}<turn|>never said")
    assert expand(gemma, f"A man says {quoted}", seed=1, greedy=True).prompt == f"A man says {quoted}"


def test_thoughts_are_left_out(gemma: Gemma, says: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GREEDY_TOKENS", 100)
    says("<|channel>thought\na man?<channel|>A woman.<turn|>")
    assert expand(gemma, PROMPT, seed=1, greedy=True).prompt == "A woman."


def test_the_tower_for_sound_is_not_loaded(gemma: Gemma) -> None:
    assert gemma.writes and gemma.sees
    assert not [name for name in gemma.model.state_dict() if "audio" in name]


def test_float8_takes_half_the_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GREEDY_TOKENS", 3)
    rounded = load_expander(folder, torch.float32, fp8="cpu")
    assert "QuantizedLinear" in {type(layer).__name__ for layer in rounded.model.modules()}
    assert expand(rounded, PROMPT, seed=1, greedy=True).reason in (
        None,
        "The prompt is used as written: Gemma's answer has no letters.",
    )


def test_a_gemma_4_without_towers_writes_and_sees(
    tmp_path: Path, picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 12B-it, which has LTX's own encoder's layout."""
    monkeypatch.setattr(module, "GREEDY_TOKENS", TOKENS)
    gemma = load_expander(write_chat_gemma(tmp_path / "gemma-4-12B-it", unified=True), torch.float32)
    assert gemma.sees and not [name for name in gemma.model.state_dict() if "audio" in name]
    scores = []
    gemma.model.lm_head.register_forward_hook(lambda _, __, given: scores.append(given[0, -1].clone()))
    for image in (None, picture, 255 - picture):
        expand(gemma, PROMPT, seed=1, image=image, greedy=True)
        assert len(scores) >= TOKENS
    first = scores[::TOKENS]
    assert not torch.allclose(first[1], first[2], atol=1e-4)


@pytest.mark.parametrize("single", [False, True])
def test_gemma_3_writes_too(
    tiny_default: TinyFiles, tmp_path: Path, single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GREEDY_TOKENS", 3)
    path = tiny_default.gemma
    if single:
        path = tmp_path / "gemma.safetensors"
        write_gemma_file(tiny_default.gemma, path)
    check_expander(path)
    gemma = load_expander(path, torch.float32)
    assert gemma.writes and gemma.path == path


# What cannot write is refused before anything loads.


def altered(folder: Path, to: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(folder, to)
    change(to)
    return to


def set_config(**values: object) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **values}))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: shutil.rmtree(path), "not found"),
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json: not found"),
        (lambda path: (path / "chat_template.jinja").unlink(), "without a chat template"),
        (lambda path: (path / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (set_config(gemma_version="gemma4-12b-ltx-v1"), "cannot write prompts"),
        (set_config(model_type="gemma4_of_tomorrow"), "gemma4_of_tomorrow"),
        (set_config(text_config=5), "config.json: describes no Gemma 4"),
    ],
)
def test_one_sentence(folder: Path, tmp_path: Path, change: Callable[[Path], object], words: str) -> None:
    path = altered(folder, tmp_path / "chat", change)
    with pytest.raises(InputError) as error:
        check_expander(path)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
    assert "gemma-4-E2B-it" in str(error.value)


def test_a_chat_model_is_no_text_encoder(folder: Path, refusal: Callable) -> None:
    with refusal(str(folder), "stock Gemma 4", "gemma4-12b-with-proj-ltx-2.5-bf16.safetensors", "expander"):
        check_gemma(folder)


def test_ltx_s_own_encoder_cannot_write(tmp_path: Path) -> None:
    path = write_tiny25(tmp_path).text_encoder
    with pytest.raises(InputError, match=r"not write them.*gemma-4-E2B-it"):
        check_expander(path)
