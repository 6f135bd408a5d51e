"""Recognises what people have in place of weights that are read: files of other formats by their first bytes, and
quantized weights by the names and dtypes in a header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .errors import InputError

HEAD = 512  # bytes that are looked at
PICKLE = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))

PREQUANTIZED = {
    "qweight": "GPTQ, AWQ or SVDQuant",
    "quant_map": "NF4 of bitsandbytes",
    "absmax": "NF4 of bitsandbytes",
    "SCB": "INT8 of bitsandbytes",
    "_data": "quanto's format",
    "_packed": "quanto's format",
    "weight_s_rel": "W4A8 of ComfyUI",
    "pre_quant_scale": "AWQ",
}
"""The last step of a key that only this format has, beside a layer's weight."""


def check_kind(path: Path, wanted: str, json_text: bool = False) -> None:
    """Raises InputError if a file that should be weights, or a `json_text`, is of another kind that is known, or if it
    is there and may not be read. wanted: what to get in its place."""
    if found := _foreign(path, json_text):
        raise InputError(f"{path}: {found[0]}; get {wanted} ({found[1]}).")


def unreadable(path: Path, error: OSError) -> InputError:
    """The error for a file that is there and that the system does not let this program read."""
    return InputError(f"{path}: cannot be read ({error.strerror}); check its permissions and its disk.")


def _foreign(path: Path, json_text: bool) -> tuple[str, str] | None:
    """What the file is, and a hint how to get the right one: two parts of a sentence. None if its kind is not known."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer and not the file itself", "`git lfs pull` in its folder does that"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")) or b"<html" in text:
        return "is a web page and not the file itself", "log in or accept the terms on its page first"
    if head.startswith(PICKLE) or head.startswith(b"PK\x03\x04"):
        return "is a pickle or an archive, which could run code and is never read", "not as .ckpt, .pt or .zip"
    if head.startswith(b"GGUF"):
        named = path.suffix.lower() == ".gguf"
        hint = "GGUF is read for the transformer alone" if named else "a transformer's name must end in .gguf"
        return "is a GGUF file, which is not read here", hint
    if text.startswith((b"{", b"[")) and not json_text:
        return "is a JSON text and not the file itself", "this is perhaps a server's message"
    if head and not head.strip(b"\0"):
        return "has only zeros at its beginning", "its download did not end"
    return None


def quantization(
    keys: Iterable[str],
    dtypes: Mapping[str, str],
    notes: Mapping[str, Mapping[str, object]],
    read: Sequence[str],
) -> str | None:
    """The name of a quantized format that the transformer is not read in, None for a file without one.

    keys: all keys of the header. dtypes: key → dtype, as safetensors names it. notes: a layer's name → what the file
    says about it. read: the names of the formats that are read.
    """
    keys = list(keys)
    lasts = {key.rpartition(".")[2] for key in keys}
    for last, name in PREQUANTIZED.items():
        if last in lasts:
            return name
    for key in keys:
        if "quant_state.bitsandbytes" in key:
            return "NF4 of bitsandbytes"
        if dtypes[key] == "F4":
            return "4-bit floats of torch"
    said = (note.get("format") for note in notes.values())
    return next((str(kind) for kind in said if kind is not None and kind not in read), None)
