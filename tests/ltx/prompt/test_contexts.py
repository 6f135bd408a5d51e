"""What is kept of a prompt: the same numbers back, and nothing computed or loaded for them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion.conditioning import TEXT_LENGTH, TextContext
from a2v.ltx.prompt.contexts import ContextCache, Recent, fingerprint, image_digest
from a2v.ltx.prompt.expand import Expansion
from a2v.ltx.prompt.gemma import load_gemma
from a2v.ltx.prompt.text import encode_text
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.tiny import TinyFiles, write_gemma_file

PROMPT = "A woman speaks"


class Maker:
    """Makes contexts of noise and counts how often; like a real one it would load Gemma when it is called."""

    def __init__(self, dtype: torch.dtype = torch.float32, width: int = 4) -> None:
        self.dtype, self.width, self.calls = dtype, width, 0

    def __call__(self) -> TextContext:
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        video, audio = (torch.randn(1, TEXT_LENGTH, w, generator=generator).to(self.dtype) for w in (self.width, 2))
        return TextContext(video, audio, 7 + self.calls)


def same(one: TextContext, other: TextContext) -> bool:
    return torch.equal(one.video, other.video) and torch.equal(one.audio, other.audio) and one.tokens == other.tokens


def kept(cache: ContextCache, text: str, identity: str, make: Callable[[], TextContext]) -> TextContext:
    """A text's context, from the cache or else made and kept, as a job does it."""
    context = cache.context(text, identity)
    if context is None:
        context = make()
        cache.keep(text, identity, context)
    return context


@pytest.fixture
def cache(tmp_path: Path) -> ContextCache:
    return ContextCache(tmp_path / "contexts")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_context_comes_back_as_it_was(cache: ContextCache, dtype: torch.dtype) -> None:
    make = Maker(dtype)
    first = kept(cache, PROMPT, "id", make)
    for text in (PROMPT, f"\n {PROMPT} "):
        again = kept(ContextCache(cache.folder), text, "id", make)
        assert same(first, again) and again.video.dtype == dtype and make.calls == 1
    assert not same(kept(cache, "a man", "id", make), first)
    assert not same(kept(cache, PROMPT, "other files", make), first)
    assert make.calls == 3
    assert sorted(p.suffix for p in cache.folder.iterdir()) == [".safetensors"] * 3


def test_a_real_prompt_without_gemma(tiny_default: TinyFiles, cache: ContextCache) -> None:
    """The numbers of encode_text, from a cache that was filled in another place."""
    loads: list[str] = []

    def encode() -> TextContext:
        loads.append("gemma")
        gemma = load_gemma(tiny_default.gemma, torch.bfloat16)
        return encode_text(gemma, load_checkpoint(tiny_default.checkpoint).connectors(torch.bfloat16), PROMPT)

    identity = fingerprint(tiny_default.gemma, tiny_default.checkpoint, dtype=torch.bfloat16)
    contexts = [kept(cache, PROMPT, identity, encode) for _ in range(3)]
    assert loads == ["gemma"]
    assert all(same(each, contexts[0]) for each in contexts) and same(contexts[1], encode())


# What tells contexts apart.


def test_a_fingerprint_is_of_the_files(tiny_default: TinyFiles, tmp_path: Path) -> None:
    gemma = Path(shutil.copytree(tiny_default.gemma, tmp_path / "here" / "gemma"))  # with its time stamps
    paths = (gemma, tiny_default.checkpoint)
    first = fingerprint(*paths)
    assert first == fingerprint(*paths) and len(first) == 64
    (gemma / "README.md").write_text("not read")
    assert fingerprint(*paths) == first
    moved = gemma.rename(tmp_path / "gemma")
    assert fingerprint(moved, tiny_default.checkpoint) == first
    assert fingerprint(moved) != first
    assert fingerprint(tiny_default.checkpoint, moved) != first
    for change in ({"dtype": torch.bfloat16}, {"device": "cuda"}, {"dtype": "float32 fp8"}):
        assert fingerprint(moved, tiny_default.checkpoint, **change) != first
    assert fingerprint(*paths[1:], device="cuda:0") == fingerprint(*paths[1:], device="cuda:1")
    config = moved / "config.json"
    status = config.stat()
    os.utime(config, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert fingerprint(moved, tiny_default.checkpoint) != first


def test_a_fingerprint_of_what_is_linked_and_of_the_chat_template(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("model", "one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    (folder / "itself").symlink_to(folder, target_is_directory=True)
    found = [fingerprint(folder)]
    for name in ("one", "other"):
        (folder / "text_encoder").unlink(missing_ok=True)
        (folder / "text_encoder").symlink_to(tmp_path / name, target_is_directory=True)
        found.append(fingerprint(folder))
    for template in ("{{ one }}", "{{ another }}"):
        (folder / "chat_template.jinja").write_text(template)
        found.append(fingerprint(folder))
    assert len(set(found)) == len(found)


def test_a_fingerprint_of_a_tokenizer_beside_its_encoder(tmp_path: Path) -> None:
    """A diffusers folder's text encoder may be named itself; its tokenizer is in another folder."""
    encoder, tokenizer = tmp_path / "text_encoder", tmp_path / "tokenizer" / "tokenizer.json"
    encoder.mkdir()
    tokenizer.parent.mkdir()
    (encoder / "config.json").write_text("{}")
    found = [fingerprint(encoder), fingerprint(tmp_path)]
    for text in ("{}", '{"model": {}}'):
        tokenizer.write_text(text)
        found += [fingerprint(encoder), fingerprint(tmp_path)]
    assert len(set(found)) == len(found)


def test_a_fingerprint_of_single_files(tiny_default: TinyFiles, tmp_path: Path) -> None:
    path = tmp_path / "gemma.safetensors"
    write_gemma_file(tiny_default.gemma, path)
    first = fingerprint(path)
    write_gemma_file(tiny_default.gemma, path, "fp8")
    assert fingerprint(path) != first


# Damage, room, and folders that cannot be written.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a context"),
    "header": lambda path: path.write_bytes(b"\xff" * 64 + path.read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_again(cache: ContextCache, damage: str) -> None:
    make = Maker()
    kept(cache, PROMPT, "id", make)
    (entry,) = cache.folder.iterdir()
    DAMAGE[damage](entry)
    second = kept(cache, PROMPT, "id", make)
    assert make.calls == 2 and list(cache.folder.iterdir()) == [entry]
    assert same(kept(cache, PROMPT, "id", make), second) and make.calls == 2


@pytest.mark.parametrize("wrong", ["length", "rank", "integers", "missing"])
def test_an_entry_of_something_else_is_made_again(cache: ContextCache, wrong: str) -> None:
    from safetensors.torch import load_file, save_file

    make = Maker()
    kept(cache, PROMPT, "id", make)
    (entry,) = cache.folder.iterdir()
    tensors = load_file(entry)
    video = tensors.pop("video")
    if wrong != "missing":
        tensors["video"] = {"length": video[:, :5], "rank": video[0], "integers": video.long()}[wrong].contiguous()
    save_file(tensors, entry)
    kept(cache, PROMPT, "id", make)
    assert make.calls == 2


def test_the_ones_used_longest_ago_go(tmp_path: Path) -> None:
    size = 4 * TEXT_LENGTH * (4 + 2)
    cache, make = ContextCache(tmp_path, limit=int(3.5 * size)), Maker()
    entries = {}
    for i, text in enumerate("abc"):
        before = set(tmp_path.iterdir())
        kept(cache, text, "id", make)
        (entries[text],) = set(tmp_path.iterdir()) - before
        os.utime(entries[text], ns=(i * 10**9, i * 10**9))
    kept(cache, "a", "id", make)  # used now
    assert make.calls == 3
    kept(cache, "d", "id", make)
    assert entries["a"].exists() and not entries["b"].exists() and entries["c"].exists()
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= cache.limit
    small = ContextCache(tmp_path, limit=size // 2)
    kept(small, "e", "id", make)
    assert make.calls == 5 and len(list(tmp_path.iterdir())) == 3, "too large to be kept, and nothing went for it"


def test_only_its_own_files_go(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_bytes(b"x" * 10**6)
    kept(ContextCache(tmp_path, limit=4 * TEXT_LENGTH * 7), PROMPT, "id", Maker())
    assert other.exists() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("obstacle", ["file", "full"])
def test_what_cannot_be_kept_does_not_stop_a_run(
    tmp_path: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "contexts"
    if obstacle == "file":
        folder.write_text("in the way")
    else:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
    make = Maker()
    with caplog.at_level(logging.WARNING):
        first = kept(ContextCache(folder), PROMPT, "id", make)
    assert make.calls == 1 and first.tokens == 8
    assert any("cannot be kept" in r.message and str(folder) in r.message for r in caplog.records)
    assert folder.is_file() or not list(folder.iterdir()), "something half-written is left"


def test_an_encoder_that_fails_leaves_nothing(cache: ContextCache) -> None:
    def fail() -> TextContext:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        kept(cache, PROMPT, "id", fail)
    assert not cache.folder.exists()


def test_prompts_are_not_readable_by_others(cache: ContextCache) -> None:
    kept(cache, PROMPT, "id", Maker())
    (entry,) = cache.folder.iterdir()
    if os.name == "posix":
        assert not stat.S_IMODE(entry.stat().st_mode) & 0o077
    assert PROMPT.encode() not in entry.read_bytes() and PROMPT not in entry.name


# Expansions.


def test_an_expansion_is_kept_by_what_was_asked(cache: ContextCache) -> None:
    calls = []

    def write() -> Expansion:
        calls.append(1)
        return Expansion(f"text {len(calls)} “你好”", expanded=True, reason=None if len(calls) < 5 else "Half seen.")

    image = torch.randint(256, (4, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    asked = [(PROMPT, 1, None, "id"), (PROMPT, 2, None, "id"), ("a man", 1, None, "id"), (PROMPT, 1, image, "id")]
    asked += [(PROMPT, 1, image.reshape(6, 4, 3), "id"), (PROMPT, 1, None, "other")]
    first = [cache.expansion(*each, write) for each in asked]
    assert len(calls) == len(asked) == len({e.prompt for e in first})
    assert [ContextCache(cache.folder).expansion(*each, write) for each in asked] == first
    assert cache.expansion(PROMPT, 1 + 2**64, None, "id", write) == first[0]
    assert len(calls) == len(asked)


def test_an_expansion_that_failed_is_not_kept(cache: ContextCache) -> None:
    failed = Expansion(PROMPT, expanded=False, reason="out of memory.")
    assert cache.expansion(PROMPT, 1, None, "id", lambda: failed) is failed
    done = Expansion("a full text", expanded=True)
    assert cache.expansion(PROMPT, 1, None, "id", lambda: done) is done
    assert cache.expansion(PROMPT, 1, None, "id", lambda: failed) == done


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"prompt": ""}', '{"prompt": 3, "reason": null}'])
def test_a_damaged_expansion_is_written_again(cache: ContextCache, damage: str) -> None:
    done = Expansion("a full text", expanded=True)
    cache.expansion(PROMPT, 1, None, "id", lambda: done)
    (entry,) = cache.folder.iterdir()
    entry.write_text(damage)
    again = Expansion("another text", expanded=True)
    assert cache.expansion(PROMPT, 1, None, "id", lambda: again) is again
    assert json.loads(entry.read_text())["prompt"] == again.prompt


def test_an_image_is_told_by_its_pixels_and_its_shape() -> None:
    image = torch.zeros(4, 6, 3, dtype=torch.uint8)
    assert image_digest(None) is None
    assert image_digest(image) == image_digest(image.clone()) != image_digest(image.reshape(6, 4, 3))
    assert image_digest(image) != image_digest(image + 1)


# In memory.


class Owner:
    pass


def test_recent_results_live_with_their_owner() -> None:
    recent, owner, other = Recent(kept=2), Owner(), Owner()
    recent.put(owner, "a", 1)
    recent.put(owner, "b", 2)
    assert recent.get(owner, "a") == 1 and recent.get(other, "a") is None
    recent.put(owner, "c", 3)
    assert [recent.get(owner, key) for key in "abc"] == [1, None, 3]
    assert len(recent._owners) == 1
    del owner
    assert len(recent._owners) == 0
