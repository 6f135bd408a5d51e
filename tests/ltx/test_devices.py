"""The kinds of GPUs, each imitated by the functions that torch has for it: this machine has none of most of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from a2v.ltx import computing, devices
from a2v.ltx.computing import CPU, CUDA, GPUS, MPS, XPU
from a2v.ltx.memory.free import free_memory, host_memory

GIB = 2**30
Machine = Callable[..., list[str]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """(kinds, mute): torch finds one GPU of each of these kinds, with 16 GiB, of which 10 are free and 2 more are kept
    in reserve. mute: those of Intel do not tell what is free. Returns whose reserve was given back, by kind."""
    emptied: list[str] = []

    def put(*kinds: str, mute: bool = False) -> list[str]:
        def mem_get_info(device: torch.device) -> tuple[int, int]:
            if mute:
                raise RuntimeError("The device (Intel(R) Graphics) doesn't support querying the available free memory.")
            return 10 * GIB, 16 * GIB

        for kind in GPUS:
            module = SimpleNamespace(
                is_available=lambda kind=kind: kind in kinds,
                device_count=lambda: 1,
                get_device_properties=lambda number, kind=kind: SimpleNamespace(
                    name=f"{kind} {number}", total_memory=16 * GIB
                ),
                mem_get_info=mem_get_info,
                memory_reserved=lambda device: 3 * GIB,
                memory_allocated=lambda device: GIB,
                empty_cache=lambda kind=kind: emptied.append(kind),
            )
            if kind == MPS:
                monkeypatch.setattr(torch.backends.mps, "is_available", module.is_available)
                module = SimpleNamespace(
                    recommended_max_memory=lambda: 13 * GIB,
                    current_allocated_memory=lambda: GIB,
                    empty_cache=module.empty_cache,
                )
            monkeypatch.setattr(torch, kind, module)
        return emptied

    return put


@pytest.mark.parametrize("kinds", [(), (MPS,), (XPU,), (CUDA,), (XPU, MPS), (CUDA, XPU, MPS)])
def test_the_usual_device_is_the_first_gpu_that_is_there(machine: Machine, kinds: tuple[str, ...]) -> None:
    emptied = machine(*kinds)
    assert devices.usual() == (kinds or (CPU,))[0]
    assert [kind for kind in (CPU, *GPUS) if devices.is_there(kind)] == [CPU, *kinds]
    assert [device.type for device, *_ in devices.found()] == list(kinds)
    devices.free_cached_memory()
    assert emptied == list(kinds)


def test_what_a_gpu_is_called_and_has(machine: Machine) -> None:
    machine(*GPUS)
    assert list(devices.found()) == [
        (torch.device("cuda", 0), "cuda 0", 16 * GIB),
        (torch.device("xpu", 0), "xpu 0", 16 * GIB),
        (torch.device("mps"), "Apple GPU", 13 * GIB),
    ]


def test_free_memory_of_each_kind(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reserve. Apple's is what Apple advises: beyond that, a job goes to the disk and does not fail. Where
    Intel's does not tell, as in laptops, it shares the host's memory."""
    machine(*GPUS)
    assert [free_memory(kind) for kind in GPUS] == [12 * GIB] * 3
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 14 * GIB)
    assert free_memory(MPS) == 0
    machine(*GPUS, mute=True)
    assert free_memory(XPU) == pytest.approx(host_memory(), rel=0.2)
    with pytest.raises(RuntimeError, match="querying"):
        free_memory(CUDA)
    monkeypatch.delattr(torch.xpu, "mem_get_info")  # as in a torch that was built without it
    assert free_memory(XPU) == pytest.approx(host_memory(), rel=0.2)


@pytest.mark.parametrize(
    ("kind", "old", "dtype"),
    [
        (CPU, False, torch.float32),
        (CUDA, False, torch.bfloat16),
        (XPU, False, torch.bfloat16),
        (MPS, False, torch.bfloat16),
        (MPS, True, torch.float32),
    ],
)
def test_the_usual_dtype(monkeypatch: pytest.MonkeyPatch, kind: str, old: bool, dtype: torch.dtype) -> None:
    ones = torch.ones

    def on_the_device(*sizes: int, device: str, **more: torch.dtype) -> torch.Tensor:
        if old:
            raise TypeError("MPS BFloat16 is only supported on MacOS 14 or newer")
        return ones(*sizes, **more)

    monkeypatch.setattr(torch, "ones", on_the_device)
    assert devices.usual_dtype(kind) is dtype


def test_what_the_words_say_of_each_kind() -> None:
    """Everything that a kind lacks is named: no kind of GPU is forgotten in one of the lists."""
    assert set(computing.WITH_FLOAT64) - {"meta"} == {CPU, CUDA}
    assert set(computing.WITH_FLOAT8) - {"meta"} == {CPU, CUDA, XPU}
    assert set(computing.WITH_COMPILER) == {CPU, CUDA}
    assert set(computing.WITH_ASYNC_COPIES) == {CUDA, XPU}


@pytest.mark.skipif(sys.platform == "darwin" or torch.xpu.is_available(), reason="there is such a GPU")
def test_torch_has_the_functions_that_are_used() -> None:
    """Of every kind, whatever was built in."""
    for kind in (CUDA, XPU):
        module = getattr(torch, kind)
        for name in ("device_count", "get_device_properties", "memory_reserved", "memory_allocated", "empty_cache"):
            assert callable(getattr(module, name))
        assert not devices.is_there(kind) or kind == CUDA
    for name in ("recommended_max_memory", "current_allocated_memory", "empty_cache"):
        assert callable(getattr(torch.mps, name))
    assert not devices.is_there(MPS)
