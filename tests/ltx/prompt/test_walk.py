"""Several texts take one walk through Gemma: each layer is fetched once for all of them, and the numbers are those of
each text alone, to the bit. The device is simulated (tests/nodes/devices.py)."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx import encoding
from a2v.ltx.diffusion.conditioning import TEXT_LENGTH, TextContext
from a2v.ltx.encoding import encode_prompts
from a2v.ltx.job import Compute, Files, Job, prepare
from a2v.ltx.memory.offload import Offload, offload_gemma
from a2v.ltx.prompt import text
from a2v.ltx.prompt.gemma import Gemma, load_gemma
from a2v.ltx.prompt.text import WALK, encode_text, encode_texts, walks
from a2v.ltx.request import parse
from a2v.ltx.trace import Recorder
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.nodes.devices import DEVICE, simulated
from a2v.tests.tiny import TinyFiles, write_gemma_file
from a2v.tests.tiny25 import Tiny25Files, write_tiny25
from torch import nn

TEXTS = ("a woman speaks", "", "$" * 1100, "  a man who sings in the rain\n")
KINDS = ("gemma 3", "gemma 3 fp8", "gemma 3 fp4_mixed", "gemma 4", "gemma 4 fp8", "gemma 4 convrot")


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def tiny25(tmp_path_factory: pytest.TempPathFactory) -> Tiny25Files:
    return write_tiny25(tmp_path_factory.mktemp("tiny25"))


@pytest.fixture
def parts(tiny: TinyFiles, tiny25: Tiny25Files, tmp_path: Path) -> Callable[[str], tuple[Gemma, nn.Module]]:
    """(kind) → a text encoder in host memory and the connectors of its checkpoint, in float32."""

    def load(kind: str) -> tuple[Gemma, nn.Module]:
        name, stored = kind[:7], kind[8:]
        path = tmp_path / f"{kind}.safetensors"
        if name == "gemma 3":
            write_gemma_file(tiny.gemma, path, *filter(None, [stored]))
            return load_gemma(path, torch.float32), load_checkpoint(tiny.checkpoint).connectors(torch.float32)
        if stored == "convrot":
            from .test_gemma4_file import quantized  # here, because that file is skipped where transformers is old

            quantized(tiny25.text_encoder, path, stored)
        else:
            path = tiny25.text_encoder
        rounded = {"fp8": "cpu"} if stored == "fp8" else {}
        named = {"video_vae": tiny25.video_vae, "audio_vae": tiny25.audio_vae, "text_encoder": tiny25.text_encoder}
        connectors = load_checkpoint(tiny25.transformer, **named).connectors(torch.float32)
        return load_gemma(path, torch.float32, **rounded), connectors

    return load


def same(ours: TextContext, theirs: TextContext) -> bool:
    equal = torch.equal(ours.video.cpu(), theirs.video) and torch.equal(ours.audio.cpu(), theirs.audio)
    return equal and ours.tokens == theirs.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_waits_is_fetched_once_for_all_texts(kind: str, parts: Callable) -> None:
    if kind.startswith("gemma 4"):
        pytest.importorskip("transformers", minversion="5.10.1")
    gemma, connectors = parts(kind)
    layers = gemma.model.model.language_model.layers
    alone = [encode_text(gemma, connectors, each) for each in TEXTS[:2]]
    assert not same(*alone)
    fetched = []
    with simulated():
        for texts in (TEXTS[:1], TEXTS[:2]):
            with offload_gemma(gemma.model, DEVICE) as offload:
                together = list(encode_texts(gemma, connectors, texts))
                fetched.append(offload.fetched)
    assert fetched[0] == fetched[1] <= len(layers) + 1, "the first layer comes once more, for a walk that may follow"
    assert all(same(*each) for each in zip(together, alone, strict=True))
    assert gemma.model.model.language_model.layers is layers


def test_many_texts_take_as_many_walks_as_their_tokens_need(parts: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    gemma, connectors = parts("gemma 3")
    alone = [encode_text(gemma, connectors, each) for each in TEXTS]
    assert [each.tokens for each in alone][1:3] == [1, 1101]
    monkeypatch.setattr(text, "WALK", TEXT_LENGTH + 1)  # the first two, the long one, the last one
    with simulated(), offload_gemma(gemma.model, DEVICE) as offload:
        together = list(encode_texts(gemma, connectors, TEXTS))
        assert offload.fetched <= 3 * len(offload.blocks) + 1
        assert offload.fetched > 2 * len(offload.blocks) + 1
    assert all(same(*each) for each in zip(together, alone, strict=True))


def test_a_walk_is_bounded_and_as_full_as_the_order_allows() -> None:
    draw = torch.Generator().manual_seed(4)
    for count in (1, 2, 3, 40):
        lengths = torch.randint(1, 1500, (count,), generator=draw).tolist()
        found = walks(lengths)
        assert [number for walk in found for number in walk] == list(range(count))
        taken = [[min(lengths[number], TEXT_LENGTH) for number in walk] for walk in found]
        assert all(sum(walk) <= WALK for walk in taken)
        assert all(sum(walk) + after[0] > WALK for walk, after in pairwise(taken))
    assert walks([5000, 5000]) == [[0, 1]], "a prompt and a negative prompt, however long"
    assert walks([]) == []


def test_the_next_walk_begins_when_its_first_context_is_asked_for(
    parts: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the hidden states of one walk are in memory, and not those of all."""
    gemma, connectors = parts("gemma 3")
    monkeypatch.setattr(text, "WALK", TEXT_LENGTH)
    told: list[tuple[int, int]] = []
    made = encode_texts(gemma, connectors, ["$" * 1100, "%" * 1100], on_layer=lambda *each: told.append(each))
    layers = len(gemma.model.model.language_model.layers)
    assert not told
    next(made)
    assert len(told) == layers + 1
    next(made)
    assert told == [(number, 2 * layers + 2) for number in range(1, 2 * layers + 3)]


# A job.


@pytest.fixture
def job(tiny: TinyFiles, tmp_path: Path) -> Callable[..., Job]:
    """(contexts, the request's fields) → a job."""
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(b"\1\0" * 16000)
    request = {
        "prompt": "a woman speaks", "negative_prompt": "dark", "video_size": {"width": 64, "height": 64},
        "num_frames": 9, "match_audio_length": False, "use_multiscale": False, "enable_prompt_expansion": False,
        "enable_safety_checker": False,
    }  # fmt: skip

    def made(contexts: Path | None = None, **fields: Any) -> Job:
        files = Files(
            tiny.checkpoint, tiny.gemma, tmp_path / "sound.wav", tmp_path / "out.mp4",
            distill_lora=tiny.distilled_lora, contexts=contexts,
        )  # fmt: skip
        return prepare(files, parse({**request, **fields}))

    return made


@pytest.fixture
def offloads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Offload]]:
    """The text encoders of jobs wait in host memory; the device is the CPU, too."""
    made: list[Offload] = []
    usual = encoding.load_gemma

    def load(*given: Any, **named: Any) -> Gemma:
        gemma = usual(*given, **named)
        made.append(offload_gemma(gemma.model, "cpu"))
        return gemma

    monkeypatch.setattr(encoding, "load_gemma", load)
    yield made
    for each in made:
        each.release()


def run(job: Job, say: Callable[[str, int, int], object] = lambda *_: None, trace: Recorder | None = None) -> Any:
    return encode_prompts(job, Compute(torch.float32), trace, say)


def test_a_job_fetches_each_layer_once(job: Callable[..., Job], tiny: TinyFiles, offloads: list[Offload]) -> None:
    told: list[tuple[str, int, int]] = []
    trace = Recorder()
    prompts = run(job(), lambda *each: told.append(each), trace)
    gemma = load_gemma(tiny.gemma, torch.float32)
    connectors = load_checkpoint(tiny.checkpoint).connectors(torch.float32)
    layers = len(gemma.model.model.language_model.layers)
    assert layers <= offloads[0].fetched <= layers + 1
    for number, (context, words) in enumerate(((prompts.positive, "a woman speaks"), (prompts.negative, "dark"))):
        expected = Recorder()
        assert same(context, encode_text(gemma, connectors, words, expected))
        ours = {name: tensor for name, tensor in trace.tensors.items() if name.startswith(f"prompt/{number}/")}
        assert ours.keys() == {f"prompt/{number}/{name}" for name in expected.tensors}
        assert all(torch.equal(ours[f"prompt/{number}/{name}"], each) for name, each in expected.tensors.items())
    assert {total for _, _, total in told} == {2} and [done for _, done, _ in told] == sorted(
        done for _, done, _ in told
    )
    assert {done for _, done, _ in told} == {0, 1, 2} and told[-1] == ("encode text", 2, 2)
    assert len(told) > 2 * layers, "it is told after each layer"


def test_sections_take_the_walk_together(job: Callable[..., Job], offloads: list[Offload]) -> None:
    words = ("a tree", "a man", "a cat")
    timeline = "\n".join(f"0:0{second} {each}" for second, each in enumerate(words))
    prompts = run(job(timeline=timeline, num_frames=65))
    assert len(prompts.sections) == 3 and offloads[0].fetched <= len(offloads[0].blocks) + 1
    alone = [run(job(prompt=each)).positive for each in words]
    assert all(same(context, each) for (_, context), each in zip(prompts.sections, alone, strict=True))


def test_what_is_kept_takes_no_walk(job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[list[str]] = []
    usual = encoding.encode_texts

    def counted(gemma: Gemma, connectors: nn.Module, texts: list[str], *more: Any) -> Iterator[TextContext]:
        walked.append(list(texts))
        return usual(gemma, connectors, texts, *more)

    monkeypatch.setattr(encoding, "encode_texts", counted)
    first = run(job(tmp_path / "kept"))
    told: list[tuple[str, int, int]] = []
    second = run(job(tmp_path / "kept", prompt="a man"), lambda *each: told.append(each))
    assert walked == [["a woman speaks", "dark"], ["a man"]]
    assert same(second.negative, first.negative) and not same(second.positive, first.positive)
    assert [done for _, done, _ in told][:2] == [0, 1] and told[-1] == ("encode text", 2, 2)
    monkeypatch.setattr(encoding, "load_gemma", lambda *_, **__: pytest.fail("Gemma was loaded"))
    again = run(job(tmp_path / "kept"), lambda *each: told.append(each))
    assert same(again.positive, first.positive) and len(walked) == 2 and told[-1] == ("encode text", 2, 2)


def test_a_job_ends_within_a_layer(job: Callable[..., Job], offloads: list[Offload]) -> None:
    calls = 0

    def say(phase: str, done: int, total: int) -> None:
        nonlocal calls
        if not offloads:
            return
        if not calls:
            for block in offloads[0].blocks:
                block.register_forward_hook(lambda *_: pytest.fail("a layer was called after the end"))
        calls += 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job(), say)
    assert calls == 1
    assert offloads[0].fetched <= 2, "more than the first layer, and the second one in advance"
