"""Whether Triton's kernels can run on a device: it is tried once, and where they cannot, the eager code stays."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from a2v.ltx import fused
from a2v.ltx.diffusion import kernels
from a2v.ltx.weights import decoding

GPU = torch.device("cuda", 0)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """What was found of a device is remembered for the process."""
    fused._tried.cache_clear()
    yield
    fused._tried.cache_clear()


@pytest.mark.parametrize("there", [False, True], ids=["without Triton", "without a compiler"])
def test_where_a_gpu_cannot_run_them_it_is_said_once(
    there: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one via CC.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", fail)
    monkeypatch.setattr(fused, "triton", object() if there else None)
    with caplog.at_level(logging.WARNING):
        reasons = {fused.obstacle(GPU) for _ in range(2)}
    said = "Triton is not installed (pip install triton)"
    if there:
        said = "Triton cannot build them for cuda:0: Failed to find C compiler"
    assert reasons == {said}
    assert caplog.messages == [f"LTX A2V: the Triton kernels stay off, so some steps take longer: {said}."]


def test_memory_that_is_full_for_a_moment_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("Triton Error [CUDA]: out of memory")]

    def fail(*_: object, **__: object) -> None:
        raise errors.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", fail)
    monkeypatch.setattr(fused, "triton", object())
    with caplog.at_level(logging.WARNING):
        assert [fused.obstacle(GPU) for _ in range(2)] == ["the GPU's memory is full"] * 2
    assert not errors and not caplog.messages
    monkeypatch.setattr(fused, "_reason", lambda device: "")
    assert fused.obstacle(GPU) == ""


def test_a_triton_for_another_torch_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("raise OSError('libcudart.so.99: no such file')", encoding="utf-8")
    code = "\n".join(
        (
            "import sys, types; import torch; sys.path.insert(0, sys.argv[1])",
            f"pack = types.ModuleType('a2v'); pack.__path__ = [{str(ROOT)!r}]; sys.modules['a2v'] = pack",
            "from a2v.ltx import fused",
            "assert fused.triton is None",
            "print(fused._reason(torch.device('cuda')))",
        )
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout == "Triton cannot be imported (OSError: libcudart.so.99: no such file)\n", done.stderr


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_elsewhere_nothing_is_said(device: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not fused.takes_over(torch.zeros(1, device=device))
        assert fused.obstacle(torch.device(device)) == "they need a GPU by NVIDIA or AMD"
    assert not caplog.messages


def test_a_tensor_without_values_is_left_to_the_eager_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the counts of benchmarks/cost.py, on a machine with a GPU."""
    monkeypatch.setattr(fused, "obstacle", lambda device: "")
    with torch._subclasses.FakeTensorMode():
        assert not fused.takes_over(torch.zeros(1, device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_with_triton_they_run() -> None:
    """Elsewhere they are wanted as well, but a machine may have no compiler for Triton."""
    if fused.triton is None:
        pytest.skip("Triton is not installed")
    assert fused.obstacle(torch.device("cuda", torch.cuda.current_device())) == ""
    assert fused.takes_over(torch.zeros(1, device="cuda"))


INTEGERS = ["tokens", "width", "heads", "half", "shared", "columns", "row_stride", "token_stride", "head_stride"]
TYPES = dict.fromkeys(INTEGERS, "i32") | dict.fromkeys(("cos", "sin", "scales"), "*fp32")
TYPES |= {"places": "*i64", "data": "*u8", "rounded": "*u8", "factors": "*fp32"}
TYPES |= dict.fromkeys(("eps", "inverse", "tiny"), "fp32")
AS_IT_IS = {"rounded": None, "factors": None, "PLAIN": True, "ROUND": False, "PTX": True}
ROUNDED = {"plain": None, "PLAIN": False, "ROUND": True, "PTX": True}
BOTH = {"PLAIN": True, "ROUND": True, "PTX": True}
KERNELS = {
    "modulate": (kernels, "_norm_modulate", {"BLOCK": 4096, "LEVELS": True, **AS_IT_IS}),
    "rotate": (kernels, "_norm_rotate", {"HEADS": 32, "HALF": 64}),
    "gate": (kernels, "_add_gated", {"BLOCK": 4096, "LEVELS": False}),
    "heads": (kernels, "_gate_heads", {"HEADS": 32, "DIM": 128, **AS_IT_IS}),
    "modulate, rounded": (kernels, "_norm_modulate", {"BLOCK": 4096, "LEVELS": False, **ROUNDED}),
    "modulate, both": (kernels, "_norm_modulate", {"BLOCK": 4096, "LEVELS": True, **BOTH}),
    "heads, rounded": (kernels, "_gate_heads", {"HEADS": 32, "DIM": 128, **ROUNDED}),
    "gelu, rounded": (kernels, "_gelu", {"BLOCK": 16384, **ROUNDED}),
    "gelu, both": (kernels, "_gelu", {"BLOCK": 16384, **BOTH}),
    **{
        f"decode {kind}": (decoding, "_decode", {"KIND": number, "EACH": True, "NUMBER": False, "BLOCK": 4096})
        for kind, number in decoding.KINDS.items()
    },
}


CARDS = (75, 90, 120)
ABLE = 89  # the first card with fp8


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        (name, card)
        for name, (_, _, constants) in KERNELS.items()
        for card in CARDS
        if card >= ABLE or not constants.get("ROUND")
    ],
)
def test_cards_that_are_not_there_can_run_them(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton compiles for any card. Turing, the oldest one here, has neither bfloat16 nor fp8 itself. On a card without
    fp8 products no kernel rounds."""
    triton = pytest.importorskip("triton", "3.3", reason="Triton is not installed, or compiles by another interface")
    if fused.INTERPRETED:
        pytest.skip("Triton runs in its interpreter here")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module, kernel, constants = KERNELS[name]
    kernel = getattr(module, kernel)
    kinds = {each: "constexpr" if each in constants else TYPES.get(each, "*bf16") for each in kernel.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(kinds.values()) if kind[0] == "*"}
    source = triton.compiler.ASTSource(kernel, kinds, constants, aligned)
    compiled = triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", capability, 32))
    assert f".target sm_{capability}" in compiled.asm["ptx"] and compiled.asm["cubin"]
