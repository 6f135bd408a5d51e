"""Compiled blocks: how many forms are compiled, counted; the same numbers as without; and where the code is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion import schedules
from a2v.ltx.diffusion.acceleration import LEVELS
from a2v.ltx.diffusion.compiled import PLACE, compile_blocks, is_compiled, keep_code
from a2v.ltx.diffusion.conditioning import AudioCondition, Guide, TextContext
from a2v.ltx.diffusion.guidance import NONE, Guidance
from a2v.ltx.grid import CHANNELS, audio_length
from a2v.ltx.latents import Noise
from a2v.ltx.memory.offload import offload_transformer
from a2v.ltx.nag import Nag
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.lora import Merger, load_lora
from a2v.tests.ltx import stage
from a2v.tests.ltx.goldens import relative
from a2v.tests.tiny import TinyFiles, write_tiny
from torch import Tensor, nn
from torch._inductor.runtime import runtime_utils

FPS = Fraction(24)
GUIDED = Guidance(3, 1, 0.7, 3)
SMALL, LARGE = (2, 2, 3), (3, 4, 6)
IMAGE, FAINT, END = (0, 1.0), (0, 0.8), (8, 0.7)  # frame and strength


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("one"), seed=3, layers=1, connector_layers=1)


def sample(
    model: nn.Module,
    size: tuple[int, int, int] = SMALL,
    guidance: Guidance = NONE,
    images: tuple[tuple[int, float], ...] = (),
    words: int = 16,
    steps: int = 1,
    strength: float = 1.0,
    referred: int = 0,
    **more: Any,
) -> Tensor:
    """A stage with a latent of that size and texts of so many tokens. referred: latents of a reference's sound."""
    draw = torch.Generator().manual_seed(1)
    texts = [TextContext(*(torch.randn(1, words, w, generator=draw) for w in (64, 32))) for _ in range(2)]
    frames = (size[0] - 1) * 8 + 1
    sound = torch.randn((1, 8, audio_length(frames, FPS), 16), generator=draw)
    heard = torch.randn((1, 8, referred, 16), generator=draw) if referred else None
    settings: dict[str, Any] = {
        "latent": torch.zeros(1, CHANNELS, *size),
        "sigmas": torch.tensor([1.0, 0.0]) if steps == 1 else schedules.beta(steps),
        "positive": texts[0],
        "negative": texts[1],
        "audio": AudioCondition(sound, frames, FPS, strength, reference=heard),
        "noise": Noise(4),
        "guidance": guidance,
        "guides": tuple(
            Guide(torch.randn(1, CHANNELS, 1, *size[1:], generator=draw), frame, own) for frame, own in images
        ),
    }
    return stage.sample(model, settings, **more)[0]


class Counted:
    """A model and its compiled twin: what a stage compiles, and how far it is from the model that is not compiled."""

    def __init__(self, model: nn.Module, plain: nn.Module) -> None:
        self.model, self.plain = model, plain
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compile_blocks(model)

    def __call__(self, **settings: Any) -> tuple[int, float]:
        """The number of graphs, all of them whole, and the relative distance, which is 0 for equal numbers."""
        counters = torch._dynamo.utils.counters
        before = counters["stats"]["unique_graphs"]
        found = sample(self.model, **settings)
        assert not counters["graph_break"]
        return counters["stats"]["unique_graphs"] - before, relative(found, sample(self.plain, **settings))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is run as it was traced: its numbers are those of the code without torch.compile."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))


def transformer(files: TinyFiles, fp8: bool = False) -> nn.Module:
    return load_checkpoint(files.checkpoint).transformer(torch.float32, "cpu", fp8)


@pytest.mark.usefixtures("eager")
@pytest.mark.timeout(600)
@pytest.mark.soak
def test_a_form_is_compiled_once_and_serves_all_sizes(files: TinyFiles) -> None:
    counted = Counted(transformer(files), transformer(files))
    assert counted(guidance=GUIDED) == (1, 0)
    assert counted(guidance=GUIDED, size=LARGE) == (0, 0), "another size"
    assert counted(guidance=GUIDED, size=(4, 5, 3), words=24) == (0, 0), "another length of the texts"
    assert counted(size=LARGE) == (1, 0), "a second stage: the unguided pass has another form"
    assert counted() == (0, 0)
    assert counted(guidance=GUIDED, steps=5, acceleration=LEVELS["regular"]) == (0, 0), "it takes both forms"
    assert counted(guidance=GUIDED, steps=5, acceleration=LEVELS["high"]) == (0, 0)
    assert counted(images=(IMAGE,), size=LARGE) == (1, 0), "an image: two noise levels"
    assert counted(images=(IMAGE,)) == (0, 0) == counted(images=(FAINT,), size=(4, 5, 3))
    assert counted(nag=Nag()) == (1, 0), "the unguided pass is led"
    assert counted(nag=Nag(5, 0.5, 2), size=LARGE, words=24) == (0, 0), "other settings of NAG"
    compile_blocks(counted.model, False)
    assert not is_compiled(counted.model.transformer_blocks[0]) and counted(guidance=GUIDED) == (0, 0)


@pytest.mark.usefixtures("eager")
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_more_forms(files: TinyFiles) -> None:
    counted = Counted(transformer(files), transformer(files))
    assert counted(images=(IMAGE,), guidance=GUIDED) == (1, 0)
    assert counted(images=(FAINT, END), guidance=GUIDED, size=LARGE) == (0, 0), "more levels, and a keyframe's tokens"
    assert counted(strength=0.5, guidance=GUIDED) == (1, 0), "the sound is made, too"
    assert counted(strength=0.7, guidance=GUIDED, size=LARGE) == (0, 0)
    assert counted(strength=0.5, images=(IMAGE,), size=LARGE) == (1, 0)
    led = {"strength": 0.0, "images": (IMAGE,), "audio_guidance": Guidance(identity=3.0)}
    assert counted(referred=5, **led) == (1, 0), "the pass without the example has the form above"
    assert counted(referred=7, size=LARGE, **led) == (0, 0)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 leaves the graph at a quantized layer with a LoRA")
@pytest.mark.usefixtures("eager")
@pytest.mark.timeout(600)
@pytest.mark.soak
def test_a_strength_is_no_constant(files: TinyFiles) -> None:
    """Of a LoRA beside fp8 weights. The compiled branch multiplies by the strength between its two products, and not
    in the second one, which rounds otherwise."""
    models = transformer(files, fp8=True), transformer(files, fp8=True)
    counted, lora = Counted(*models), load_lora(files.distilled_lora)
    mergers = [Merger(model, load_checkpoint(files.checkpoint).transformer_weight) for model in models]
    graphs, found = [], []
    for strength, size in ((0.3, SMALL), (0.6, LARGE), (0.9, SMALL)):
        for merger in mergers:
            merger.set([(lora, strength)])
        number, off = counted(size=size)
        graphs.append(number)
        found.append(sample(models[0]))
        assert off < 1e-6
    assert graphs == [1, 0, 0]
    assert not torch.equal(found[0], found[2]), "each strength acts"


@pytest.mark.usefixtures("eager")
@pytest.mark.timeout(600)
def test_blocks_share_their_forms_and_the_step_tells_of_them(tmp_path: Path) -> None:
    """Of three blocks only the last one has another form: nothing reads the sound after it."""
    model = transformer(write_tiny(tmp_path, seed=3, layers=3, connector_layers=1))
    torch._dynamo.reset()
    compile_blocks(model)
    told: list[object] = []
    watched = {"on_compile": lambda: told.append("compiling"), "on_step": lambda done, *_: told.append(done)}
    sample(model, steps=3, **watched)
    assert told == ["compiling", "compiling", 1, 2, 3]
    sample(model, steps=3, size=LARGE, **watched)
    assert told[5:] == [1, 2, 3]
    torch.compile(torch.neg, backend="eager")(torch.ones(2))
    assert told[5:] == [1, 2, 3], "what others compile between the stages is none of it"


@pytest.mark.usefixtures("eager")
@pytest.mark.soak
def test_blocks_that_wait_share_their_forms_as_well(tmp_path: Path) -> None:
    """What brings a block is no part of its graph. A hook behind the block would be: each block would be compiled."""
    files = write_tiny(tmp_path, seed=3, layers=4, connector_layers=1)
    counted = Counted(transformer(files), transformer(files))
    with offload_transformer(counted.model, "cpu") as waiting:
        assert counted() == (2, 0)
        assert waiting.fetched == 5, "each block, and the first one for a next step"


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("guidance", [GUIDED, NONE], ids=["guided", "plain"])
def test_code_by_inductor(files: TinyFiles, guidance: Guidance) -> None:
    """One piece of code for two sizes, with and without an image. It adds up in another order."""
    counted = Counted(transformer(files), transformer(files))
    for images in ((), (IMAGE,)):
        found = [counted(guidance=guidance, size=size, images=images) for size in (SMALL, LARGE)]
        assert [graphs for graphs, _ in found] == [1, 0]
        assert all(0 < off < 1e-5 for _, off in found)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_another_process_finds_the_code(files: TinyFiles, tmp_path: Path) -> None:
    program = [sys.executable, Path(__file__).with_name("compiling.py"), files.checkpoint, tmp_path / "code"]
    environment = {name: value for name, value in os.environ.items() if name != PLACE}
    found = []
    for _ in range(2):
        done = subprocess.run(program, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found == [[1, 1, 0], [1, 0, 1]]


def test_where_the_code_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PLACE, raising=False)
    keep_code(tmp_path / "new" / "code")
    assert os.environ[PLACE] == str(tmp_path / "new" / "code")
    assert (tmp_path / "new" / "code").stat().st_mode & 0o777 == 0o700, "nobody else may write what is executed"
    assert runtime_utils.cache_dir() == str(tmp_path / "new" / "code"), "torch takes it"
    assert runtime_utils.triton_cache_dir(0).startswith(str(tmp_path / "new" / "code")), "and so does Triton"
    monkeypatch.delenv(PLACE)
    own = runtime_utils.cache_dir()  # torch sets its variable itself when it compiles
    assert os.environ[PLACE] == own
    keep_code(tmp_path / "later")
    assert os.environ[PLACE] == str(tmp_path / "later")


def test_a_place_that_the_user_names_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLACE, str(tmp_path / "mine"))
    keep_code(tmp_path / "ours")
    assert os.environ[PLACE] == str(tmp_path / "mine") and not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PLACE, raising=False)
    (tmp_path / "file").touch()
    keep_code(tmp_path / "file" / "code")
    assert PLACE not in os.environ
