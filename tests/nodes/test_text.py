"""Texts in the graph: encoded once, and Gemma's quantized files under ComfyUI's memory management."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import comfy.model_management as management
import folder_paths
from a2v.ltx.diffusion.conditioning import TextContext
from a2v.ltx.models import MODELS
from a2v.ltx.prompt import expand as expansion
from a2v.ltx.prompt.contexts import KEPT
from a2v.ltx.prompt.expander import load_expander
from a2v.ltx.prompt.gemma import load_gemma
from a2v.ltx.prompt.text import encode_text
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.quantized import QuantizedLinear, ScaledLinear
from a2v.nodes import fetching, loaders, memory, text, windows
from a2v.nodes.progress import shown
from a2v.tests import layouts
from a2v.tests.nodes.devices import DEVICE, Elsewhere, simulated
from a2v.tests.tiny import TinyFiles, write_gemma_file, write_tiny
from a2v.tests.tiny_chat import write_chat_file, write_chat_gemma

pytestmark = pytest.mark.usefixtures("inference")

CPU = torch.device("cpu")
PROMPT = "a person speaks"
PRECISIONS = ("bf16", "fp8", "fp4_mixed")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), layers=1)


@pytest.fixture(params=PRECISIONS)
def single(request: pytest.FixtureRequest, files: TinyFiles, tmp_path: Path) -> Path:
    path = tmp_path / f"gemma_{request.param}.safetensors"
    write_gemma_file(files.gemma, path, request.param)
    return path


def connectors(files: TinyFiles) -> memory.Adapted:
    return memory.hold_connectors(load_checkpoint(files.checkpoint).connectors, "float32")


@pytest.fixture
def encoder(files: TinyFiles) -> memory.TextEncoder:
    return memory.hold_gemma(lambda dtype: load_gemma(files.gemma, dtype), "float32", connectors(files))


def run(node: type, *args: Any, **kwargs: Any) -> tuple:
    """A node as ComfyUI calls it: on a class that knows its id in the graph."""
    return node.execute.__func__(SimpleNamespace(hidden=SimpleNamespace(unique_id="1")), *args, **kwargs).args


def encode(encoder: memory.TextEncoder, prompt: str) -> TextContext:
    (context,) = run(text.TextEncode, encoder, prompt)
    return context


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was brought to its device, call after call."""
    calls: list[Any] = []
    use = memory.use

    def counting(*handles: memory.Handle, **options: Any) -> list[nn.Module]:
        calls.append(handles)
        return use(*handles, **options)

    monkeypatch.setattr(memory, "use", counting)
    return calls


@pytest.fixture
def forwards(encoder: memory.TextEncoder) -> Iterator[list[int]]:
    calls: list[int] = []
    hook = encoder.gemma.model.model.language_model.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def test_a_text_is_encoded_once(
    encoder: memory.TextEncoder, files: TinyFiles, brought: list[Any], forwards: list[int]
) -> None:
    expected = encode_text(
        load_gemma(files.gemma, torch.float32), load_checkpoint(files.checkpoint).connectors(torch.float32), PROMPT
    )
    first, other, again = (encode(encoder, prompt) for prompt in (PROMPT, "a man", f" {PROMPT}\n"))
    assert len(brought) == len(forwards) == 2
    for context in (first, again):
        assert torch.equal(context.video, expected.video) and torch.equal(context.audio, expected.audio)
        assert context.tokens == expected.tokens
    assert not torch.equal(first.video, other.video)


def test_the_texts_used_last_are_kept(encoder: memory.TextEncoder, brought: list[Any]) -> None:
    for i in range(KEPT):
        encode(encoder, f"man {i}")
    encode(encoder, "man 0")  # used again, so not the oldest any more
    encode(encoder, "one more")
    assert len(brought) == KEPT + 1
    encode(encoder, "man 0")
    assert len(brought) == KEPT + 1
    encode(encoder, "man 1")
    assert len(brought) == KEPT + 2


def test_a_cut_text_is_told_each_time(encoder: memory.TextEncoder) -> None:
    """On the node, and again where ComfyUI has the node cached."""
    node = SimpleNamespace(hidden=SimpleNamespace(unique_id="1"))
    said = [text.TextEncode.execute.__func__(node, encoder, sign * 1100).ui for sign in ("$", "$")]
    assert said == [shown("the text is longer than 1024 tokens and was cut")] * 2
    assert text.TextEncode.execute.__func__(node, encoder, PROMPT).ui is None


def test_a_cut_prompt_of_a_timeline_is_told_with_its_section(encoder: memory.TextEncoder) -> None:
    lines = f"0:00 a woman\n0:01 chorus: {'$' * 1100}\n0:02 a man\n0:03 chorus:"
    *_, report = run(windows.SectionTimeline, encoder, "", lines, 97, 24.0, 0, False)
    told = [line for line in report.splitlines() if "was cut" in line]
    assert told == ["the prompt of section 0:01.0 chorus is longer than 1024 tokens and was cut"]
    *_, report = run(windows.SectionTimeline, encoder, "$" * 1100, "", 97, 24.0, 0, False)
    assert report.splitlines()[1:] == ["the prompt is longer than 1024 tokens and was cut"]


def test_another_encoder_has_its_own_and_none_is_kept_alive(files: TinyFiles, brought: list[Any]) -> None:
    encoders = [
        memory.hold_gemma(lambda dtype: load_gemma(files.gemma, dtype), "float32", connectors(files)) for _ in range(2)
    ]
    contexts = [encode(each, PROMPT) for each in encoders]
    assert len(brought) == 2 and contexts[0] is not contexts[1]
    module = weakref.ref(encoders[0].module)
    kept = weakref.ref(contexts[0].video)
    brought.clear()
    del encoders[0], contexts[0]
    gc.collect()
    management.cleanup_models()
    assert module() is None and kept() is None


def test_an_expansion_is_written_once(
    encoder: memory.TextEncoder, brought: list[Any], forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "NEW_TOKENS", 6)
    picture = torch.rand(1, 30, 40, 3, generator=torch.Generator().manual_seed(1))
    asked = [(1, None), (2, None), (1, picture), (1, 1 - picture), (1, None), (1, picture), (2, None)]
    written = [run(text.ExpandPrompt, encoder, PROMPT, seed, True, image) for seed, image in asked]
    assert len(brought) == 4
    assert written[4] == written[0] and written[5] == written[2] and written[6] == written[1]
    before = len(forwards)
    assert run(text.ExpandPrompt, encoder, PROMPT, 1, False) == (PROMPT, f"prompt: {PROMPT}")
    assert len(forwards) == before and len(brought) == 4


def test_an_expansion_that_failed_is_tried_again(
    encoder: memory.TextEncoder, brought: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "NEW_TOKENS", 6)

    def fail(*_: object) -> None:
        raise RuntimeError("the kernel failed")

    hook = encoder.gemma.model.model.language_model.register_forward_pre_hook(fail)
    prompt, report = run(text.ExpandPrompt, encoder, PROMPT, 1, True)
    hook.remove()
    assert prompt == PROMPT and "the kernel failed" in report
    prompt, report = run(text.ExpandPrompt, encoder, PROMPT, 1, True)
    assert "the kernel failed" not in report and len(brought) == 2


def test_a_gemma_that_cannot_see_says_so(files: TinyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "NEW_TOKENS", 6)
    path = tmp_path / "blind.safetensors"
    write_gemma_file(files.gemma, path, vision=False)
    encoder = memory.hold_gemma(lambda dtype: load_gemma(path, dtype), "float32", connectors(files))
    shown: list[str] = []
    monkeypatch.setattr(text, "show_text", lambda _, said: shown.append(said))
    for _ in range(2):
        prompt, report = run(text.ExpandPrompt, encoder, PROMPT, 1, True, torch.rand(1, 30, 40, 3))
        assert prompt != PROMPT and "no vision tower" in report and shown[-1] == prompt


# Quantized files under ComfyUI's memory management.


def placed(module: nn.Module, kind: type = nn.Module) -> list[bool]:
    """Of every layer that ComfyUI may leave behind: whether it is on the simulated device."""
    found = (m for m in module.modules() if hasattr(m, "comfy_cast_weights") and isinstance(m, kind))
    return [isinstance(m.weight, Elsewhere) for m in found]


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_a_single_file_in_part(single: Path, files: TinyFiles, share: float) -> None:
    gemma = load_gemma(single, torch.float32)
    theirs = load_checkpoint(files.checkpoint).connectors(torch.float32)
    expected = encode_text(gemma, theirs, PROMPT)
    before = {name: tensor.clone() for name, tensor in gemma.model.state_dict().items()}
    with simulated():
        patcher = memory.hold(gemma.model, DEVICE, CPU)
        waiting = memory.hold(theirs, DEVICE, CPU)
        encoder = memory.TextEncoder(patcher, gemma, memory.Adapted(waiting, waiting))
        for each in encoder.get_models():
            each.partially_load(DEVICE, int(each.model_size() * share * 2))
            memory.settle(each.model, DEVICE)
        context = encode_text(encoder.gemma, encoder.connectors.module, PROMPT)
        assert isinstance(context.video, Elsewhere), "it was not computed on the device"
        assert torch.equal(context.video.cpu(), expected.video) and torch.equal(context.audio.cpu(), expected.audio)
        quantized = placed(gemma.model, QuantizedLinear)
        assert bool(quantized) == ("bf16" not in single.name)
        assert any(isinstance(m, ScaledLinear) for m in gemma.model.modules()) == ("fp4" in single.name)
        if share == 1.0:
            assert all(placed(gemma.model))
            scales = [m.weight_scale for m in gemma.model.modules() if isinstance(m, ScaledLinear)]
            assert all(isinstance(scale, Elsewhere) for scale in scales)
        elif share == 0.3:
            assert not all(placed(gemma.model)) and (not quantized or not all(quantized))
        patcher.detach()
    for name, tensor in gemma.model.state_dict().items():
        assert not isinstance(tensor, Elsewhere) and torch.equal(tensor, before[name]), name


def in_part(single: Path, files: TinyFiles) -> memory.TextEncoder:
    """A text encoder of which a third is on the simulated device."""
    gemma, theirs = load_gemma(single, torch.float32), load_checkpoint(files.checkpoint).connectors(torch.float32)
    patcher, waiting = memory.hold(gemma.model, DEVICE, CPU), memory.hold(theirs, DEVICE, CPU)
    encoder = memory.TextEncoder(patcher, gemma, memory.Adapted(waiting, waiting))
    patcher.partially_load(DEVICE, int(patcher.model_size() / 3))
    waiting.partially_load(DEVICE, 2 * waiting.model_size())
    for each in encoder.get_models():
        memory.settle(each.model, DEVICE)
    return encoder


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each weight was brought to the device to stay, by its id. What was loaded stays as it was loaded."""
    counts: Counter[int] = Counter()
    copy = fetching._copy

    def counted(parameter: Tensor, *where: Any) -> Any:
        counts[id(parameter)] += 1
        return copy(parameter, *where)

    monkeypatch.setattr(fetching, "_copy", counted)
    monkeypatch.setattr(memory, "use", lambda *_, **__: [])
    return counts


def test_several_texts_fetch_a_layer_that_waits_once(single: Path, files: TinyFiles, copied: Counter[int]) -> None:
    texts = (PROMPT, "a man", f" {PROMPT} ", "")
    plain = load_gemma(single, torch.float32)
    theirs = load_checkpoint(files.checkpoint).connectors(torch.float32)
    expected = [encode_text(plain, theirs, each) for each in texts]
    with simulated():
        encoder, told = in_part(single, files), []
        layers = encoder.gemma.model.model.language_model.layers
        before = {id(p): p.device for p in encoder.module.parameters()}
        waiting = [
            m for m in layers.modules() if hasattr(m, "comfy_cast_weights") and not isinstance(m.weight, Elsewhere)
        ]
        assert waiting
        found = text.encoded(encoder, texts, lambda *each: told.append(each))
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.video, theirs.video) and torch.equal(ours.audio, theirs.audio)
        assert {copied[id(layer.weight)] for layer in waiting} == {1} and max(copied.values()) == 1
        assert found[2] is found[0], "a text that came twice was encoded twice"
        assert told == [(done, 3 * len(layers) + 3) for done in range(1, 3 * len(layers) + 4)]
        assert {id(p): p.device for p in encoder.module.parameters()} == before, "not everything is back at its place"
        copied.clear()
        assert text.encoded(encoder, texts, lambda *_: pytest.fail("encoded again"))[1] is found[1]
        text.encoded(encoder, ["one more"], lambda *_: None)
        assert not copied, "one text needs no layer twice"
        encoder.patcher.detach()


def test_an_interrupt_ends_the_walk_within_a_layer(single: Path, files: TinyFiles, copied: Counter[int]) -> None:
    with simulated():
        encoder = in_part(single, files)
        before = {id(p): p.device for p in encoder.module.parameters()}
        told = []

        def interrupt(*each: int) -> None:
            told.append(each)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            text.encoded(encoder, [PROMPT, "a man"], interrupt)
        assert len(told) == 1 and {id(p): p.device for p in encoder.module.parameters()} == before
        encoder.patcher.detach()


def test_the_sections_of_a_timeline_are_encoded_together(encoder: memory.TextEncoder, brought: list[Any]) -> None:
    lines = "0:00 a woman\n0:01 a man\n0:02 a woman"
    timeline, first, *_ = run(windows.SectionTimeline, encoder, "", lines, 97, 24.0, 0, False)
    assert len(brought) == 1 and timeline.contexts[0] is timeline.contexts[2] is first
    for context, prompt in zip(timeline.contexts, ("a woman", "a man", "a woman"), strict=True):
        expected = encode_text(encoder.gemma, encoder.connectors.module, prompt)
        assert torch.equal(context.video, expected.video)


def test_whole_in_comfyuis_layers(single: Path, files: TinyFiles) -> None:
    expected = encode_text(
        load_gemma(single, torch.float32), load_checkpoint(files.checkpoint).connectors(torch.float32), PROMPT
    )
    encoder = memory.hold_gemma(lambda dtype: load_gemma(single, dtype), "float32", connectors(files))
    assert torch.equal(encode(encoder, PROMPT).video, expected.video)
    size = sum(p.nbytes for p in load_gemma(single, torch.float32).model.state_dict().values())
    assert encoder.patcher.model_size() == size


def test_fp8_from_the_widget(files: TinyFiles) -> None:
    encoder = memory.hold_gemma(lambda dtype, **fp8: load_gemma(files.gemma, dtype, **fp8), "fp8", connectors(files))
    assert placed(encoder.module, QuantizedLinear)
    assert encode(encoder, PROMPT).video.isfinite().all()


# The loader.


@pytest.fixture
def models(base: Path, fresh_lists: None, files: TinyFiles) -> Iterator[Path]:
    """models/text_encoders with two folders, three files, and a file of something else."""
    folder = base / "models" / "text_encoders" / "mine"
    shutil.copytree(files.gemma, folder / "gemma-folder")
    shutil.copy(files.checkpoint, folder / "a-checkpoint.safetensors")
    write_gemma_file(files.gemma, folder / "gemma_3_12B_it_fp4_mixed.safetensors", "fp4_mixed")
    yield folder
    shutil.rmtree(folder)


def test_the_loader_offers_folders_and_files(models: Path) -> None:
    mine = [name.replace("\\", "/") for name in loaders.gemma_names() if "mine" in name]
    assert mine == ["mine/gemma-folder", "mine/gemma_3_12B_it_fp4_mixed.safetensors", "mine/a-checkpoint.safetensors"]


Check = Callable[[str], bool | str]


def test_the_loader_looks_at_a_file_before_anything_runs(models: Path) -> None:
    check: Check = loaders.TextEncoderLoader.validate_inputs
    assert check("mine/gemma-folder") is True and check("mine/gemma_3_12B_it_fp4_mixed.safetensors") is True
    assert "not Gemma 3" in check("mine/a-checkpoint.safetensors")
    assert "models/text_encoders" in check("mine/absent.safetensors")


@pytest.mark.parametrize("name", ["gemma-folder", "gemma_3_12B_it_fp4_mixed.safetensors"])
def test_the_loader_loads_both(models: Path, files: TinyFiles, name: str) -> None:
    stamp = loaders.TextEncoderLoader.fingerprint_inputs(f"mine/{name}", dtype="auto")
    assert stamp == loaders.TextEncoderLoader.fingerprint_inputs(f"mine/{name}")
    (encoder,) = loaders.TextEncoderLoader.execute(f"mine/{name}", connectors(files), "float32").args
    context: Tensor = encode(encoder, PROMPT).video
    expected = encode_text(
        load_gemma(models / name, torch.float32), load_checkpoint(files.checkpoint).connectors(torch.float32), PROMPT
    )
    assert torch.equal(context, expected.video)


# The expander of LTX-2.5.


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", minversion="5.10.1")
    return write_chat_gemma(tmp_path_factory.mktemp("models") / "gemma-4-E2B-it")


@pytest.fixture
def listed(chat: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The expander's name in models/text_encoders."""
    folders = folder_paths.folder_names_and_paths
    monkeypatch.setitem(folders, "text_encoders", ([str(chat.parent)], folders["text_encoders"][1]))
    monkeypatch.setattr(expansion, "GREEDY_TOKENS", 8)
    return chat.name


@pytest.mark.parametrize("single", [False, True], ids=["folder", "file"])
def test_an_expander_writes_instead_of_the_text_encoder(
    encoder: memory.TextEncoder,
    listed: str,
    chat: Path,
    brought: list[Any],
    forwards: list[int],
    single: bool,
    tmp_path: Path,
) -> None:
    """One model that is loaded once, freed with the text encoder, and asked greedily: any seed gives the same."""
    if single:
        listed, kind = MODELS["expander-int8"].name, "convrot" if layouts.can_write("convrot") else "bf16"
        chat = write_chat_file(shutil.copytree(chat, tmp_path / "source"), chat.with_name(listed), kind)
        assert listed in text.gemma_names()
    theirs = load_expander(chat, torch.bfloat16 if management.should_use_bf16() else torch.float32)
    expected = expansion.expand(theirs, PROMPT, seed=0, greedy=True)
    assert expected.expanded
    written = [run(text.ExpandPrompt, encoder, each, n, True, None, listed) for n, each in enumerate([PROMPT] * 2)]
    assert written[0] == written[1] and written[0][0] == expected.prompt
    run(text.ExpandPrompt, encoder, "a man", 1, True, None, listed)
    assert [type(handle).__name__ for (handle,) in brought] == ["Writer"] * 2 and brought[0] == brought[1]
    assert not forwards
    model = weakref.ref(brought[0][0].module)
    brought.clear()
    text._writers = type(text._writers)(kept=1)
    gc.collect()
    management.cleanup_models()
    assert model() is None


def test_what_cannot_write_is_told_before_the_graph_runs(files: TinyFiles, listed: str, chat: Path) -> None:
    check = text.ExpandPrompt.validate_inputs
    assert check() is check(text.OWN) is check(listed) is True
    assert "none of these" in check("none of these")
    (chat / "chat_template.jinja").rename(chat / "away")
    try:
        assert "without a chat template" in check(listed)
    finally:
        (chat / "away").rename(chat / "chat_template.jinja")
    stamp = text.ExpandPrompt.fingerprint_inputs
    assert stamp(prompt="a") == stamp(prompt="b", expander=text.OWN) == "" != stamp(prompt="a", expander=listed)
