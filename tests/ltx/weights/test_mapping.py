"""Weight files of the published size, sparse ones: a small machine opens them, and no weight is read for that."""

from __future__ import annotations

import json
import mmap
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx.weights import mapping
from a2v.ltx.weights.files import open_safetensors
from a2v.ltx.weights.gguf import GgufFile
from safetensors import safe_open
from safetensors.torch import save_file

PROC = Path("/proc")
MEMORY, OVERCOMMIT = PROC / "meminfo", PROC / "sys/vm/overcommit_memory"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="what the system does is read from /proc")
ENDING = torch.arange(4.0)  # what a sparse file holds at its end, behind zeros


def larger_than_memory() -> int:
    """Bytes of a file that memory and swap do not hold. Skips where the system would reserve them all the same."""
    if OVERCOMMIT.read_text().strip() != "0":
        pytest.skip("this system refuses no mapping, or all that it cannot back")
    told = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
    return 1024 * sum(int(told[name].split()[0]) for name in ("MemTotal", "SwapTotal")) + 2**30


def end(path: Path, size: int) -> None:
    """Makes a file so long; what is not written takes no disk."""
    try:
        with path.open("r+b") as file:
            file.truncate(size)
            file.seek(size - ENDING.nbytes)
            file.write(ENDING.numpy().tobytes())
    except OSError as error:
        pytest.skip(f"no file of {size} bytes can be made here: {error}")
    if path.stat().st_blocks * 512 > 2**24:
        path.unlink()
        pytest.skip("this file system has no sparse files")


@on_linux
def test_a_safetensors_file_larger_than_memory(tmp_path: Path) -> None:
    size, path = larger_than_memory(), tmp_path / "large.safetensors"
    header = {
        "large": {"dtype": "F8_E4M3", "shape": [size], "data_offsets": [0, size]},
        "last": {"dtype": "F32", "shape": [4], "data_offsets": [size, size + ENDING.nbytes]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    end(path, 8 + len(text) + size + ENDING.nbytes)
    with pytest.raises(RuntimeError, match="mmap"):  # as long as torch refuses it, the pack needs a mapping of its own
        safe_open(path, "pt")
    opened = open_safetensors(path, "another")
    assert opened.get_tensor("large").shape == (size,)
    assert torch.equal(opened.get_tensor("last"), ENDING)


@on_linux
def test_a_gguf_file_larger_than_memory(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    size, path = larger_than_memory() // 4096 * 4096, tmp_path / "large.gguf"
    writer = gguf.GGUFWriter(path, "ltxv")
    kinds = gguf.GGMLQuantizationType
    writer.add_tensor_info("large", (size // 4, 1), numpy.dtype(numpy.float32), size, raw_dtype=kinds.F32)
    writer.add_tensor_info("last", ENDING.shape, numpy.dtype(numpy.float32), ENDING.nbytes, raw_dtype=kinds.F32)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = path.stat().st_size
    end(path, start + -start % gguf.GGUF_DEFAULT_ALIGNMENT + size + ENDING.nbytes)
    opened = GgufFile(path)
    assert opened.get("large").shape == (size // 4, 1)
    assert torch.equal(opened.get("last"), ENDING)


def resident(path: Path) -> int:
    """Bytes of a file's mappings that this process has read."""
    found, ours = 0, False
    for line in (PROC / "self/smaps").read_text().splitlines():
        if "-" in (first := line.split()[0]) and not first.endswith(":"):
            ours = line.endswith(str(path))
        elif ours and first == "Rss:":
            found += 1024 * int(line.split()[1])
    return found


@on_linux
def test_no_weight_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({f"{number}": torch.zeros(2**19) for number in range(32)}, path)
    opened = open_safetensors(path, "another")
    tensors = [opened.get_tensor(key) for key in opened.keys()]  # noqa: SIM118 - it is no mapping
    before = resident(path)
    assert before < path.stat().st_size / 32, f"{before} bytes were read"
    assert sum(float(tensor.sum()) for tensor in tensors) == 0
    assert resident(path) > path.stat().st_size / 2


def test_tensors_are_those_of_safe_open(tmp_path: Path) -> None:
    """Of every dtype, without a number, and where the header's length leaves them unaligned."""
    path = tmp_path / "all.safetensors"
    tensors = {f"{dtype}": torch.arange(6).view(2, 3).to(dtype) for dtype in mapping.DTYPES.values()}
    tensors |= {"one": torch.tensor(3.5), "none": torch.zeros(0, 4), "line": torch.arange(3.0)}
    save_file(tensors, path, {"said": "x"})
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    for spaces in range(8):
        header = content[8 : 8 + length] + b" " * spaces
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
        opened, theirs = open_safetensors(path, "another"), safe_open(path, "pt")
        assert opened.metadata() == {"said": "x"} and opened.keys() == theirs.keys()
        for key in theirs.keys():  # noqa: SIM118
            own, given = opened.get_tensor(key), theirs.get_tensor(key)
            assert (own.dtype, own.shape) == (given.dtype, given.shape)
            assert own.contiguous().view(-1).view(torch.uint8).tolist() == given.view(-1).view(torch.uint8).tolist()


def test_the_file_does_not_change(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(3)}, path)
    before, tensor = path.read_bytes(), open_safetensors(path, "another").get_tensor("a")
    tensor.mul_(7)
    assert tensor.tolist() == [7, 7, 7] and path.read_bytes() == before


def test_a_mapping_that_is_refused_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(3)}, path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with refusal(path, f"{path}: the system does not map its", "Cannot allocate memory", "swap"):
        open_safetensors(path, "another")


def test_a_dtype_that_torch_does_not_have(tmp_path: Path, refusal: Callable) -> None:
    path = tmp_path / "weights.safetensors"
    text = json.dumps({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(3))
    with refusal(path, "F6_E2M3"):
        open_safetensors(path, "another").get_tensor("a")


def test_a_published_file_that_is_cut_short_names_itself(tmp_path: Path, refusal: Callable) -> None:
    """Not the first file of its kind: that is another 46 GB."""
    path = tmp_path / "ltx-2.3-22b-distilled-1.1.safetensors"
    save_file({"a": torch.ones(300)}, path)
    path.write_bytes(path.read_bytes()[:-9])
    with refusal(path, "download ltx-2.3-22b-distilled-1.1.safetensors again"):
        open_safetensors(path, "another")
