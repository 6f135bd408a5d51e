"""JSON taken off the stream: whatever the pieces, it is what Python's own parser reads, with the files beside it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from a2v.api.files.incoming import Incoming
from a2v.api.protocol import json_reader
from a2v.api.protocol.json_reader import JsonReader, TooMuch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = ("audio_url", "image_url")
SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Reading:
    """A reader whose files lie in a folder of the test's."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.folder = folder
        self.reader = JsonReader(NAMES, lambda: Incoming(folder, 2**24), **limits)

    def __enter__(self) -> JsonReader:
        return self.reader

    def __exit__(self, *_: object) -> None:
        self.reader.discard()
        assert list(self.folder.iterdir()) == [], "nothing is left"


def feed(reader: JsonReader, body: bytes, cuts: list[int]) -> Any:
    """The value that is read of a body in pieces."""
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for start, end in pairwise(edges):
        reader.feed(body[start:end])
    return json.loads(reader.text)


def contents(reader: JsonReader) -> dict[str, bytes]:
    found = {}
    for name, arrived in reader.files.items():
        assert arrived.error is None, arrived.error
        arrived.file._file.flush()
        found[name] = arrived.file.path.read_bytes()
    return found


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@SETTINGS
@given(value=VALUES, ascii=st.booleans(), indent=st.sampled_from([None, 1]), cuts=st.lists(st.integers(0), max_size=12))
def test_without_files_it_is_what_python_reads(
    tmp_path: Path, value: Any, ascii: bool, indent: int | None, cuts: list[int]
) -> None:
    body = json.dumps(value, ensure_ascii=ascii, indent=indent).encode("utf-8", "surrogatepass")
    with Reading(tmp_path) as reader:
        for cut in cuts:
            assert cut >= 0
        assert feed(reader, body, cuts) == json.loads(body) and bytes(reader.text) == body and not reader.files


def escaped(text: str, how: str) -> str:
    """The text as JSON's strings may have it."""
    if how == "slashes":
        return json.dumps(text).replace("/", "\\/")
    if how == "all":
        return '"' + "".join(f"\\u{ord(letter):04x}" for letter in text) + '"'
    return json.dumps(text)


@SETTINGS
@given(
    data=st.binary(min_size=1, max_size=400),
    form=st.sampled_from(["base64", "no padding", "lines", "percent", "quoted base64"]),
    how=st.sampled_from(["plain", "slashes"]),
    extra=st.dictionaries(st.text(max_size=5), VALUES, max_size=3),
    cuts=st.lists(st.integers(0), max_size=30),
)
def test_data_uris_are_files_whatever_the_pieces(
    tmp_path: Path, data: bytes, form: str, how: str, extra: dict[str, Any], cuts: list[int]
) -> None:
    digits = base64.b64encode(data).decode()
    quoted = "".join(f"%{byte:02X}" for byte in data)
    text = {
        "base64": f"data:audio/wav;base64,{digits}",
        "no padding": f"DATA:;base64,{digits.rstrip('=')}",
        "lines": "data:;BASE64," + "\n".join(digits[start : start + 7] for start in range(0, len(digits), 7)),
        "percent": f"data:,{quoted}",
        "quoted base64": "data:audio/wav;base64," + "".join(f"%{ord(digit):02x}" for digit in digits),
    }[form]
    before = json.dumps({key: value for key, value in extra.items() if key not in NAMES})[:-1]
    body = f'{before}{", " if len(before) > 1 else ""} "audio_url" : {escaped(text, how)}, "prompt": "x"}}'.encode()
    with Reading(tmp_path) as reader:
        value = feed(reader, body, cuts)
        expected = json.loads(body)
        assert {**value, "audio_url": ""} == {**expected, "audio_url": ""}
        assert contents(reader) == {"audio_url": data} and value["audio_url"] == reader.files["audio_url"].text
        assert len(reader.text) < len(before) + 200, "the file is not in the text"


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"audio_url": "data:,a", "image_url": "data:,b"}, {"audio_url", "image_url"}),
        ({"other": "data:,a", "audio_url": "http://host"}, set()),
        ({"deep": {"audio_url": "data:,a"}}, set()),
        ({"audio_url": ["data:,a"]}, set()),
        (["audio_url", "data:,a"], set()),
        ("data:,a", set()),
        ({'a"udio_url': "data:,a", "audio_url": "x"}, set()),
        ({"audio_url": "dat", "image_url": "data:,b"}, {"image_url"}),
    ],
)
def test_only_values_of_these_names_at_the_top_are_files(tmp_path: Path, body: Any, names: set[str]) -> None:
    for step in (1, 3, 1000):
        with Reading(tmp_path) as reader:
            text = json.dumps(body).encode()
            feed(reader, text, list(range(0, len(text), step)))
            assert reader.files.keys() == names


def test_an_escaped_name_is_that_name_and_the_last_of_two_counts(tmp_path: Path) -> None:
    body = b'{"\\u0061udio_url": "data:,first", "audio_url": "data:,second", "audio_url": "data:,third"}'
    with Reading(tmp_path) as reader:
        value = feed(reader, body, [])
        assert contents(reader) == {"audio_url": b"third"} and value["audio_url"] == reader.files["audio_url"].text


@pytest.mark.parametrize(
    "body",
    [b'{"audio_url": "data:,a', b'{"audio_url": "data:,a\\q"}', b'{"audio_url": "data:,\\u00"}', b'{"audio_url": "dat'],
)
def test_what_is_no_json_is_found_out_in_the_end(tmp_path: Path, body: bytes) -> None:
    for step in (1, 1000):
        with Reading(tmp_path) as reader, pytest.raises(ValueError):
            feed(reader, body, list(range(0, len(body), step)))


def test_the_same_file_is_the_same_text_and_another_is_not(tmp_path: Path) -> None:
    def text(uri: str) -> str:
        with Reading(tmp_path) as reader:
            return feed(reader, json.dumps({"audio_url": uri}).encode(), [])["audio_url"]

    assert text("data:a/b;base64,AAAA") == text("data:a/b;base64,AA\nAA") != text("data:a/b;base64,AAAB")
    assert text("data:a/b;base64,AAAA").startswith("data:a/b;base64,")


def pieces(count: int) -> Iterator[bytes]:
    yield b'{"audio_url": "data:;base64,'
    yield from (b"QUJD" * 16384 for _ in range(count))
    yield b'"}'


def test_plain_base64_needs_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pattern reads a hundred megabytes in a second, and no other thread runs Python meanwhile."""
    monkeypatch.setattr(json_reader, "WITHOUT_END", None)
    with Reading(tmp_path) as reader:
        for piece in (b'{"audio_url": "data:audio/wav;base64,', b"QUJD" * 1000, b'QUJD", "seed": 7}'):
            reader.feed(piece)
        assert reader.files["audio_url"].file.size == 3003 and json.loads(reader.text)["seed"] == 7


def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    with Reading(tmp_path) as reader:
        for piece in pieces(100):
            reader.feed(piece)
            assert len(reader.text) + len(reader._held) < 200
        assert reader.files["audio_url"].file.size == 100 * 3 * 16384


@pytest.mark.parametrize("text", [b"\\\\", b'\\"', b"\\u0041", b"\\"])
def test_a_data_uri_of_nothing_but_escapes_takes_neither_memory_nor_time(tmp_path: Path, text: bytes) -> None:
    piece = text * (2**16 // len(text))
    with Reading(tmp_path) as reader:
        reader.feed(b'{"audio_url": "data:,')
        begun = time.monotonic()
        for _ in range(16):
            reader.feed(piece)
            assert len(reader._held) <= 5
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"prompt": "' + b"x" * 3000, "more than 2 KiB beside its data URIs"),
        (b'{"other": "data:,' + b"x" * 3000, "more than 2 KiB"),
        (b"{" + b'"a":1,' * 500, "more than 2 KiB"),
        (b"[" * 100, "nested deeper than 32"),
        (b'{"a":' * 33, "nested deeper than 32"),
        (b"{" + b'"audio_url": "data:,a",' * 9, "more than 8 data URIs"),
    ],
)
def test_everything_else_is_bounded(tmp_path: Path, body: bytes, sentence: str) -> None:
    for step in (1, 50, 10_000):
        with Reading(tmp_path, longest=2048) as reader, pytest.raises(TooMuch, match=sentence):
            feed(reader, body, list(range(0, len(body), step)))


def test_the_bound_is_a_few_kilobytes_more_than_anybody_needs() -> None:
    assert 2**16 <= json_reader.LONGEST_TEXT <= 2**20
