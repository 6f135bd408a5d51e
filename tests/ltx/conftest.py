"""What the engine's tests share: tiny files of several sizes, ltx-core's own modules on them, and a relative error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.tests.ltx.goldens import relative
from a2v.tests.tiny import TinyFiles, write_tiny
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

SIZES = {
    "default": {},
    "wider": {"layers": 2, "heads": 2, "head_dim": 32, "connector_layers": 3, "vae_width": 8, "gemma_width": 64},
    "deeper": {"layers": 6, "heads": 8, "head_dim": 8, "connector_layers": 1, "vae_width": 32, "gemma_layers": 5},
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small are faster on one thread, by far so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def products_on_cuda() -> None:
    """Products were computed on the GPU, with and without a bias, before a test reads how much memory is allocated.

    cuBLAS and cuBLASLt get a workspace from torch at their first product, 32 MiB on Hopper and 8 MiB on older cards. It
    stays until the process ends, so it is not what a step or a tile takes.
    """
    x, bias = (torch.ones(*size, dtype=torch.bfloat16, device="cuda") for size in ((64, 64), (64,)))
    for each in (None, bias):
        nn.functional.linear(x, x, each)
    torch.cuda.synchronize()


def _write(factory: pytest.TempPathFactory, name: str) -> TinyFiles:
    return write_tiny(factory.mktemp(name), seed=len(name), **SIZES[name])


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """A whole set of files, for tests that do not change them."""
    return write_tiny(tmp_path_factory.mktemp("tiny"), vae_width=4)  # decoding is a third of a small run otherwise


@pytest.fixture(scope="session")
def tiny_default(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return _write(tmp_path_factory, "default")


@pytest.fixture(scope="session", params=SIZES)
def tiny_any(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """Three checkpoints whose widths, depths and head counts differ."""
    if request.param == "default":
        return request.getfixturevalue("tiny_default")
    return _write(tmp_path_factory, request.param)


@pytest.fixture(scope="session")
def peer() -> Callable[[TinyFiles, str], nn.Module]:
    """(files, part) → ltx-core 1.0.0's module on the same file in float32; the part is a name of its model ledger."""
    ledgers = pytest.importorskip("ltx_pipelines.utils.model_ledger")

    def build(files: TinyFiles, part: str) -> nn.Module:
        cpu = torch.device("cpu")
        ledger = ledgers.ModelLedger(torch.float32, cpu, str(files.checkpoint), None, str(files.upscaler))
        builder = getattr(ledger, f"{part}_builder")
        model = builder.meta_model(builder.model_config(), builder.module_ops)
        paths = [builder.model_path]
        state = builder.load_sd(paths, registry=builder.registry, device=cpu, sd_ops=builder.model_sd_ops).sd
        if part == "transformer":  # its prefix takes in the connectors, which another part reads
            state = {key: value for key, value in state.items() if "embeddings_connector" not in key}
        if part == "embeddings_processor":  # 49 states of width 3840 are fixed in its code
            extractor = model.feature_extractor
            extractor.embedding_dim = builder.model_config()["transformer"]["caption_channels"]
            for stream in ("video", "audio"):
                out, states = state[f"feature_extractor.{stream}_aggregate_embed.weight"].shape
                setattr(extractor, f"{stream}_aggregate_embed", nn.Linear(states, out))
        model.load_state_dict(state, strict=True, assign=True)
        return model.float().eval().requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def off() -> Callable[[Tensor, Tensor], float]:
    """Relative L2 distance from the second tensor; a shape that differs is a failure."""

    return relative


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    """Reproducible float32 noise of a shape; each call continues the stream."""
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture(scope="session")
def refusal() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """`with refusal(path, *words)`: an InputError in one sentence that holds the path and the words."""

    @contextlib.contextmanager
    def expect(path: Path, *words: str) -> Iterator[None]:
        with pytest.raises(InputError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message and message.endswith("."), message
        for word in (str(path), *words):
            assert word in message, f"{word!r} is not in {message!r}"

    return expect


@pytest.fixture(scope="session")
def read() -> Callable[[Path], tuple[dict[str, Tensor], dict[str, str]]]:
    """A safetensors file's tensors and metadata."""

    def content(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(path, "pt") as file:
            return load_file(path), file.metadata()

    return content


@pytest.fixture
def page() -> Path:
    """The endpoint's public page."""
    path = Path(__file__).resolve().parents[3] / "shared" / "design" / "endpoint-page.txt"
    if not path.is_file():
        pytest.skip(f"no endpoint page at {path}")
    return path
