"""Media in: every way a request may name a file, right and wrong. Media out: results over HTTP, and as data URIs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import math
import mimetypes
import os
import random
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from email.utils import formatdate
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote

import av
import numpy as np
import pytest
import requests
from a2v.api.database.store import Store
from a2v.api.files import results
from a2v.api.files.incoming import Incoming
from a2v.api.files.media import Inbox
from a2v.api.files.results import inline_gone
from a2v.api.protocol import files
from a2v.api.protocol.json_reader import JsonReader
from a2v.api.settings import SUBFOLDER, Settings
from a2v.ltx.errors import InputError
from a2v.ltx.media.audio import load_track
from a2v.ltx.media.container import open_bytes
from a2v.ltx.media.images import load_image
from a2v.ltx.media.promised import MOST_SAMPLES, promised_samples
from a2v.ltx.media.suffixes import FILM, SOUND
from a2v.tests.api.edges import answering, app_of, data_uri, make_settings, opened, png, serving, wav
from aiohttp import web
from av.stream import Disposition
from PIL import Image

HERE = "127.0.0.1"
PIECE = 977  # bytes in which data URIs come


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, allowed_hosts=(HERE,), fetch_seconds=5)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with opened(settings) as store:
        yield store


def bring(value: str, settings: Settings, store: Store, kind: str = "audio") -> str:
    """A value of a request, brought the way it comes: a data URI with its JSON in pieces, anything else as a URL."""
    field = f"{kind}_url"

    async def main() -> str:
        inbox = Inbox(settings, store)
        if value[:5].lower() != "data:":
            return await inbox.localize(value, field, kind, "a request")
        reader = JsonReader([field], lambda: Incoming(settings.input_folder, settings.max_media))
        try:
            body = json.dumps({field: value}).encode()
            for start in range(0, len(body), PIECE):
                reader.feed(body[start : start + PIECE])
            arrived = reader.files[field]
            if arrived.error:
                raise arrived.error
            return await inbox.keep(arrived.file, "", arrived.uri.content_type, field, kind, "a request")
        finally:
            reader.discard()

    return asyncio.run(main())


def uri(data: bytes, content_type: str = "audio/wav") -> str:
    return data_uri(data, content_type)


def left(settings: Settings) -> list[str]:
    return sorted(os.listdir(settings.input_folder)) if settings.input_folder.exists() else []


DATA_URIS = {
    "base64": lambda data: uri(data),
    "upper case": lambda data: uri(data).replace("data:", "DATA:").replace("base64", "BASE64"),
    "no type": lambda data: uri(data, ""),
    "charset": lambda data: uri(data, "audio/wav;charset=utf-8"),
    "codecs in quotes": lambda data: uri(data, 'audio/wav;codecs="1"'),
    "no padding": lambda data: uri(data).rstrip("="),
    "white space": lambda data: "\n ".join(uri(data)[start : start + 76] for start in range(0, len(uri(data)), 76)),
    "base64, quoted": lambda data: "data:audio/wav;base64," + quote(base64.b64encode(data), safe=""),
    "percent": lambda data: "data:audio/wav," + quote(data),
    "percent, no type": lambda data: "data:," + quote(data, safe=""),
}


def test_a_file_that_cannot_be_replaced_is_the_same(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows replaces no file that somebody reads, for instance an earlier request with the same sound."""
    name, replace = bring(uri(wav()), settings, store), os.replace

    def refuse(source: Path, target: Path) -> None:
        if target.exists():
            raise PermissionError(13, "Access is denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    assert bring(uri(wav()), settings, store) == name
    assert left(settings) == [Path(name).name]


@pytest.mark.parametrize("form", DATA_URIS)
def test_every_form_of_data_uri_is_the_same_file(form: str, settings: Settings, store: Store) -> None:
    data = wav(0.11)[:-1]  # a length that base64 must pad
    name = bring(DATA_URIS[form](data), settings, store)
    assert name == f"{SUBFOLDER}/{hashlib.sha256(data).hexdigest()[:32]}.wav"
    assert (settings.input / name).read_bytes() == data
    assert left(settings) == [Path(name).name]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("data:audio/wav;base64", "no comma"),
        ("data:", "no comma"),
        ("data:audio/wav;base64,", "empty"),
        ("data:,", "empty"),
        ("data:audio/wav;base64,!!!!", "base64 is broken"),
        ("data:audio/wav;base64,AAAAA", "base64 is broken"),
        ("data:audio/wav;base64,AA=A", "base64 is broken"),
        ("data:audio/wav;base64,ÄÄÄÄ", "base64 is broken"),
        (uri(b"plain text, of no use"), "no audio"),
        (uri(b"RIFF"), "no audio"),
        (uri(png()), "no sound"),
    ],
)
def test_a_wrong_data_uri_says_what_is_wrong_and_leaves_nothing(
    value: str, sentence: str, settings: Settings, store: Store
) -> None:
    with pytest.raises(InputError, match=rf"^audio_url: .*{sentence}"):
        bring(value, settings, store)
    assert left(settings) == []


def test_the_cap_holds_for_data_uris_to_the_byte(tmp_path: Path, store: Store) -> None:
    data = wav()
    fits = make_settings(tmp_path, max_media=len(data))
    for value in (uri(data), "data:audio/wav," + quote(data)):
        assert bring(value, fits, store)
        with pytest.raises(InputError, match=r"^audio_url: .* larger than .* upload"):
            bring(value, make_settings(tmp_path, max_media=len(data) - 1), store)


def test_what_was_brought_is_what_the_engine_reads(settings: Settings, store: Store) -> None:
    track = load_track(settings.input / bring(uri(wav(0.5)), settings, store))
    assert track.rate == 16000 and track.waveform.shape == (1, 7936)  # edges.wav writes whole blocks of 256 bytes
    assert load_image(settings.input / bring(uri(png(9), "image/png"), settings, store, "image")).shape == (9, 9, 3)


def test_a_playlist_does_not_make_the_server_read_other_files(settings: Settings, store: Store) -> None:
    (settings.input / "secret.wav").write_bytes(wav())
    secret = settings.input / "secret.wav"
    with answering(lambda _: web.Response(body=wav())) as (port, got):
        for target in (f"file:{secret}", str(secret), f"http://{HERE}:{port}/a.wav", "../secret.wav"):
            playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n"
            with pytest.raises(InputError, match=r"^audio_url: .*no audio"):
                bring(uri(playlist.encode(), "audio/mpegurl"), settings, store)
        concat = f"ffconcat version 1.0\nfile '{secret}'\n"
        with pytest.raises(InputError, match=r"^audio_url: .*no audio"):
            bring(uri(concat.encode()), settings, store)
        assert not got
    assert left(settings) == []


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_images_keep_their_kind(format: str, settings: Settings, store: Store) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 90, 200)).save(file, format)
    name = bring(uri(file.getvalue(), ""), settings, store, "image")
    assert Image.registered_extensions()[Path(name).suffix] == format


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        wav(),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, settings: Settings, store: Store) -> None:
    with pytest.raises(InputError, match=r"^image_url: .*no image"):
        bring(uri(data, "image/png"), settings, store, "image")
    assert left(settings) == []


def animation(frames: int, side: int) -> bytes:
    """A GIF of one colour a frame: small, however many pixels it stands for."""
    file = io.BytesIO()
    pictures = [Image.new("P", (side, side), number % 256) for number in range(frames)]
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], loop=0)
    return file.getvalue()


@pytest.mark.parametrize(("width", "height"), [(12_500, 12_500), (20_000, 4), (4, 20_000), (9_000, 9_000)])
def test_a_picture_beyond_the_engine_s_limits_is_refused_at_the_door(
    settings: Settings, store: Store, width: int, height: int
) -> None:
    """By its header: 156 megapixels of one colour are a file of 180 kB."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    with pytest.raises(
        InputError, match=rf"^image_url: is {width}x{height}; at most 80 megapixels and 16384 pixels a side"
    ):
        bring(uri(file.getvalue(), "image/png"), settings, store, "image")
    assert left(settings) == []


def test_a_picture_that_pillow_takes_for_a_bomb_is_told_the_same(settings: Settings, store: Store) -> None:
    head = io.BytesIO()
    Image.new("1", (8, 8)).save(head, "PNG")
    data = bytearray(head.getvalue())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    with pytest.raises(InputError, match=r"^image_url: is far larger; at most 80 megapixels"):
        bring(uri(bytes(data), "image/png"), settings, store, "image")


def test_of_an_animation_only_the_first_frame_is_read(settings: Settings, store: Store) -> None:
    """150 frames of a megapixel are nearly half a gigabyte; one is what the video begins with."""
    name = bring(uri(animation(150, 1000), "image/gif"), settings, store, "image")
    tracemalloc.start()
    assert load_image(settings.input / name).shape == (1000, 1000, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6


def test_the_sound_of_a_video_is_audio_and_a_silent_one_is_not(settings: Settings, store: Store) -> None:
    with pytest.raises(InputError, match=r"^audio_url: .*no sound"):
        bring(uri(film("mp4", "mpeg4"), "video/mp4"), settings, store)


# films


def film(format: str, codec: str, width: int = 32, height: int = 32, frames: int = 4) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=Fraction(8))
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8))))
        container.mux(stream.encode())
    return file.getvalue()


def song_with_a_cover() -> bytes:
    """A song whose cover FFmpeg shows as a video stream."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        sound = container.add_stream("libmp3lame", rate=44_100)
        cover = container.add_stream("png", rate=1)
        cover.width = cover.height = 8
        cover.pix_fmt = "rgb24"
        cover.disposition = Disposition.attached_pic
        for packet in cover.encode(av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8))):
            container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 44_100), np.float32), format="fltp", layout="stereo")
        frame.rate = 44_100
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("format", "codec", "suffix"),
    [
        ("mp4", "mpeg4", ".mp4"),
        ("mov", "mpeg4", ".mov"),
        ("matroska", "libx264", ".mkv"),
        ("webm", "libvpx-vp9", ".webm"),
        ("avi", "mpeg4", ".avi"),
        ("mpeg", "mpeg2video", ".mpg"),
        ("gif", "gif", ".gif"),
    ],
)
def test_a_film_is_kept_with_a_suffix_of_its_kind(
    format: str, codec: str, suffix: str, settings: Settings, store: Store
) -> None:
    data = film(format, codec)
    kept = f"{SUBFOLDER}/{hashlib.sha256(data).hexdigest()[:32]}"
    name = bring(uri(data, ""), settings, store, "video")
    assert name.startswith(kept) and Path(name).suffix in FILM | {".gif"}
    with answering(lambda _: web.Response(body=data)) as (port, _):
        assert bring(f"http://{HERE}:{port}/a{suffix}", settings, store, "video") == kept + suffix


@pytest.mark.parametrize(
    ("format", "codec", "suffix"),
    [("flac", "flac", ".flac"), ("ipod", "aac", ".m4a"), ("w64", "pcm_s16le", ".w64"), ("mp4", "aac", ".mp4")],
)
def test_a_suffix_does_not_depend_on_what_the_system_knows(
    format: str, codec: str, suffix: str, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small container of Docker has no table of types, and Python's own knows half of them."""
    monkeypatch.setattr(mimetypes, "types_map", {})
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=48_000)
        pcm = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), format="s16", layout="mono")
        pcm.rate = 48_000
        container.mux(stream.encode(pcm))
        container.mux(stream.encode())
    data = file.getvalue()
    with answering(lambda _: web.Response(body=data)) as (port, _):
        name = bring(f"http://{HERE}:{port}/a{suffix}", settings, store)
    assert name == f"{SUBFOLDER}/{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
    assert Path(bring(uri(data, ""), settings, store)).suffix in SOUND | FILM


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (wav(), "the file has no picture that moves, only sound; give a video."),
        (song_with_a_cover(), "the file has no picture that moves"),
        (png(9), "the file is a still picture; give a video."),
        (b"plain text, of no use", r"the file is no video \("),
        (film("mp4", "mpeg4")[:64], r"the file is no video \("),
        (film("matroska", "mpeg4").replace(b"V_MPEG4/ISO/ASP", b"V_OF_THE_FUTURE"), "its video codec is not supported"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:/etc/passwd\n", "the file is no video"),
    ],
)
def test_what_is_no_film_is_refused(data: bytes, words: str, settings: Settings, store: Store) -> None:
    with pytest.raises(InputError, match=rf"^video_url: {words}"):
        bring(uri(data, "video/mp4"), settings, store, "video")
    assert left(settings) == []


def test_a_reference_is_a_film_or_a_picture(settings: Settings, store: Store) -> None:
    for data, suffixes in ((film("mp4", "mpeg4"), FILM), (png(9), {".png"})):
        assert Path(bring(uri(data, ""), settings, store, "reference")).suffix in suffixes
    with pytest.raises(InputError, match=r"^reference_url: the file is no video \("):
        bring(uri(b"plain text, of no use", ""), settings, store, "reference")


def test_a_film_of_too_large_pictures_is_refused_by_its_header(settings: Settings, store: Store) -> None:
    """Few bytes, if all is one colour: 16,400 pixels wide, and the engine would decode each frame whole."""
    with pytest.raises(InputError, match=r"^video_url: is 16400x16; at most 80 megapixels and 16384 pixels a side"):
        bring(uri(film("avi", "ffv1", 16_400, 16, 1), "video/avi"), settings, store, "video")
    assert left(settings) == []


# films whose header promises more than the file has: FFmpeg would take 36 bytes of memory for each packet


def box(kind: bytes, *parts: bytes) -> bytes:
    inside = b"".join(parts)
    return struct.pack(">I", 8 + len(inside)) + kind + inside


def table(kind: bytes, *numbers: int) -> bytes:
    """A box with a version, flags and 32-bit numbers."""
    return box(kind, struct.pack(f">{1 + len(numbers)}I", 0, *numbers))


def promise(
    samples: int, *, handler: bytes = b"vide", ticks: int = 2, chunks: int = 1, pack: bool = False, fragment: int = 0
) -> bytes:
    """Some hundred bytes of MP4 that promise so many samples of one byte, and as many in each chunk."""
    matrix = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    film_head = box(b"mvhd", bytes(12), struct.pack(">IIIH", 1000, 1000, 1 << 16, 256), bytes(10), matrix, bytes(28))
    head = box(
        b"tkhd", struct.pack(">6I", 7, 0, 0, 1, 0, 1000), bytes(16), matrix, struct.pack(">II", 64 << 16, 64 << 16)
    )
    if handler == b"vide":
        kind = box(b"avc1", bytes(6), b"\0\1", bytes(16), struct.pack(">HHII", 64, 64, 72 << 16, 72 << 16), bytes(4),
                   b"\0\1", bytes(32), struct.pack(">Hh", 24, -1))  # fmt: skip
    else:
        kind = box(b"sowt", bytes(6), b"\0\1", bytes(8), struct.pack(">HHII", 2, 16, 0, 48_000 << 16))
    tables = box(
        b"stbl",
        box(b"stsd", struct.pack(">II", 0, 1), kind),
        table(b"stts", 1, samples, ticks),
        table(b"stsc", 1, 1, samples, 1),
        table(b"stsz", 1, samples),
        table(b"stco", chunks, *[40] * chunks),
    )
    named = box(b"hdlr", bytes(8), handler, bytes(13))
    media = box(b"mdia", table(b"mdhd", 0, 0, 25, 1000, 0), named, box(b"minf", table(b"vmhd", 0, 0), tables))
    fragments = box(b"mvex", table(b"trex", 1, 1, 1, 1, 0)) if fragment else b""
    moov = box(b"moov", film_head, box(b"trak", head, media), fragments)
    if pack:
        packed = struct.pack(">I", len(moov)) + zlib.compress(moov)
        moov = box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", packed)))
    moof = box(b"moof", box(b"traf", box(b"tfhd", struct.pack(">II", 1 << 17, 1)), table(b"trun", fragment)))
    return box(b"ftyp", b"isom", bytes(4), b"isom") + box(b"mdat", bytes(64)) + moov + (moof if fragment else b"")


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("video", promise(2 * 10**7)),
        ("audio", promise(2 * 10**7, handler=b"soun")),
        ("audio", promise(2**31, handler=b"soun", ticks=1, chunks=20)),
        ("video", promise(2 * 10**7, pack=True)),
        ("video", promise(8, fragment=2 * 10**7)),
        ("video", b"".join((box(b"ftyp", b"isom", bytes(4)), bytes(4), promise(2 * 10**7)))),
    ],
    ids=["pictures", "sound", "sound in chunks", "packed", "fragment", "behind other bytes"],
)
def test_a_header_that_promises_millions_of_packets_is_refused(
    kind: str, data: bytes, settings: Settings, store: Store
) -> None:
    """FFmpeg would take 700 MB for 20 million of them, and some kilobytes can promise thousands of millions."""
    assert len(data) < 1000
    with pytest.raises(
        InputError, match=rf"^{kind}_url: the file is no {kind} \(its header promises more than 8388608"
    ):
        bring(uri(data, "video/mp4"), settings, store, kind)
    assert left(settings) == []


def test_a_table_whose_end_is_missing_promises_anything() -> None:
    """FFmpeg reads on behind its box, where any numbers may be."""
    for kind in (b"stts", b"ctts", b"stsc", b"stsz", b"trun"):
        data = box(b"ftyp", b"isom", bytes(4)) + box(b"moov", struct.pack(">I4sIH", 16, kind, 0, 0))
        assert promised_samples(io.BytesIO(data)) == math.inf, kind


@pytest.mark.parametrize(("format", "codec"), [("mov", "pcm_s16le"), ("mp4", "aac"), ("mov", "adpcm_ima_qt")])
def test_an_hour_of_sound_promises_little(format: str, codec: str) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        layout = "s16p" if codec == "adpcm_ima_qt" else "s16" if codec == "pcm_s16le" else "fltp"
        for _ in range(36):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 4_800), np.int16 if "s16" in layout else np.float32), layout, "mono"
            )
            frame.rate = 48_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.seek(0)
    promised = promised_samples(file)
    assert file.tell() == 0 and 0 < promised * 1000 < MOST_SAMPLES, "3.6 seconds"
    with open_bytes(file) as container:
        assert container.streams.audio


@pytest.mark.parametrize("format", ["mp4", "mov"])
def test_a_film_promises_the_packets_that_it_has(format: str) -> None:
    data = film(format, "mpeg4")
    with av.open(io.BytesIO(data)) as container:
        assert promised_samples(io.BytesIO(data)) == container.streams.video[0].frames
    assert promised_samples(io.BytesIO(wav())) == promised_samples(io.BytesIO(film("matroska", "mpeg4"))) == 0


def test_a_film_above_the_cap_is_refused_as_any_file(tmp_path: Path, store: Store) -> None:
    data = film("mp4", "mpeg4")
    assert bring(uri(data, "video/mp4"), make_settings(tmp_path, max_media=len(data)), store, "video")
    with pytest.raises(InputError, match=r"^video_url: .* larger than .* upload"):
        bring(uri(data, "video/mp4"), make_settings(tmp_path, max_media=len(data) - 1), store, "video")


# over HTTP


def test_a_file_is_fetched_once_named_by_content(settings: Settings, store: Store) -> None:
    with answering(lambda _: web.Response(body=wav(), content_type="audio/x-wav")) as (port, _):
        names = {
            bring(f"http://{HERE}:{port}/{path}", settings, store) for path in ("a.wav", "b", "c.php?x=1", "d.exe")
        }
    assert names == {f"{SUBFOLDER}/{hashlib.sha256(wav()).hexdigest()[:32]}.wav"}
    assert len(left(settings)) == 1


@pytest.mark.parametrize(
    "path", ["..%2f..%2fevil.wav", "a.wav%00.png", "x.wav%20[output]", "%0d%0aSet-Cookie", ".wav", "a.w/v"]
)
def test_a_name_in_a_url_decides_nothing_but_a_known_suffix(path: str, settings: Settings, store: Store) -> None:
    with answering(lambda _: web.Response(body=wav())) as (port, _):
        name = bring(f"http://{HERE}:{port}/{path}", settings, store)
    assert name == f"{SUBFOLDER}/{hashlib.sha256(wav()).hexdigest()[:32]}.wav"
    assert sorted(path.name for path in settings.input.iterdir()) == [SUBFOLDER]


def test_a_file_above_the_cap_is_refused_by_its_length_or_on_its_way(tmp_path: Path, store: Store) -> None:
    settings = make_settings(tmp_path, allowed_hosts=(HERE,), max_media=200_000)
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while sent < 2**30:
                await response.write(bytes(2**16))
                sent += 2**16
        except ConnectionError:
            pass
        return response

    for answer in (lambda _: web.Response(body=bytes(200_001)), endless):
        with answering(answer) as (port, _), pytest.raises(InputError, match=r"^audio_url: .*larger than"):
            bring(f"http://{HERE}:{port}/a.wav", settings, store)
    assert sent < 2**26  # what the sockets hold, and no more
    assert left(settings) == []


def test_a_transfer_that_breaks_leaves_nothing(settings: Settings, store: Store) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100000"})
        await response.prepare(request)
        await response.write(wav())
        request.transport.close()
        return response

    with answering(broken) as (port, _), pytest.raises(InputError, match=r"^audio_url: .*could not be read"):
        bring(f"http://{HERE}:{port}/a.wav", settings, store)
    assert left(settings) == []


@pytest.mark.parametrize(
    "value", ["", "a.wav", "../../etc/passwd", "file:///etc/passwd", "/etc/passwd", "C:\\a.wav", "http://["]
)
def test_a_value_that_is_no_url_is_refused(value: str, settings: Settings, store: Store) -> None:
    with pytest.raises(InputError, match=r"^audio_url: "):
        bring(value, settings, store)


# out


@pytest.fixture
def result(settings: Settings) -> Path:
    settings.output_folder.mkdir()
    path = settings.output_folder / ("0123456789abcdef" * 2 + "_00001_.mp4")
    path.write_bytes(random.Random(0).randbytes(5000))  # FFmpeg takes one of 200 random files for some format
    return path


@pytest.fixture
def base(settings: Settings) -> Iterator[str]:
    with serving(lambda: app_of(files.operations(settings), settings)) as port:
        yield f"http://{HERE}:{port}"


def test_a_result_is_served_whole_and_in_ranges(settings: Settings, result: Path, base: str) -> None:
    url = results.result_url(result.name, base, settings)
    whole = requests.get(url, timeout=10)
    assert whole.status_code == 200 and whole.content == result.read_bytes()
    assert whole.headers["Content-Type"] == "video/mp4" and whole.headers["Accept-Ranges"] == "bytes"
    assert whole.headers["Content-Disposition"] == f'inline; filename="{result.name}"'
    part = requests.get(url, headers={"Range": "bytes=100-299"}, timeout=10)
    assert part.status_code == 206 and part.content == result.read_bytes()[100:300]
    assert part.headers["Content-Range"] == "bytes 100-299/5000"
    assert requests.get(url, headers={"Range": "bytes=9000-"}, timeout=10).status_code == 416
    assert requests.head(url, timeout=10).headers["Content-Length"] == "5000"


WHOLE = (200, 0, 5000, None)
"""Status, first byte, byte behind the last one, and Content-Range, of a result of 5000 bytes."""
NONE = (416, 0, 0, "bytes */5000")
RANGES = {
    "bytes=0-9": (206, 0, 10, "bytes 0-9/5000"),
    "Bytes=4990-": (206, 4990, 5000, "bytes 4990-4999/5000"),
    "bytes=4990-9000": (206, 4990, 5000, "bytes 4990-4999/5000"),
    "bytes=-10": (206, 4990, 5000, "bytes 4990-4999/5000"),
    "bytes=-9000": (206, 0, 5000, "bytes 0-4999/5000"),
    "bytes=5000-": NONE,
    "bytes=5000-9000": NONE,
    "bytes=-0": NONE,
    "bytes=0-" + "9" * 5000: WHOLE,
    "bytes=9-2": NONE,
    "bytes=0-9,20-29": WHOLE,
    "bytes=9000-9999, 0-9": WHOLE,
    "bytes=-": WHOLE,
    "bytes=a-b": WHOLE,
    "seconds=0-9": WHOLE,
}


def test_ranges_are_answered_as_http_says(settings: Settings, result: Path, base: str) -> None:
    """RFC 9110, section 14.2: what is no single range of bytes is as if it were not there, and so is one of HEAD."""
    url = results.result_url(result.name, base, settings)
    with requests.Session() as session:  # one connection: no answer may leave bytes in it
        for wanted, (status, start, end, content_range) in RANGES.items():
            answer = session.get(url, headers={"Range": wanted}, timeout=10)
            assert (answer.status_code, answer.headers.get("Content-Range")) == (status, content_range), wanted[:40]
            assert answer.content == result.read_bytes()[start:end], wanted[:40]
            assert status == 416 or answer.headers["Content-Length"] == str(end - start)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            head = session.head(url, headers={"Range": wanted}, timeout=10)
            assert (head.status_code, head.headers["Content-Length"]) == (200, "5000")


def test_a_download_goes_on_only_if_the_file_is_the_same(settings: Settings, result: Path, base: str) -> None:
    url = results.result_url(result.name, base, settings)
    whole = requests.head(url, timeout=10).headers
    etag, date = whole["ETag"], whole["Last-Modified"]
    conditions = {etag: True, date: True, "": True}
    later = formatdate(result.stat().st_mtime + 3600, usegmt=True)
    for other in ('"other"', f"W/{etag}", etag.strip('"'), formatdate(0, usegmt=True), later, "yesterday"):
        conditions[other] = False
    for condition, same in conditions.items():
        headers = {"Range": "bytes=10-19", "If-Range": condition}
        answer = requests.get(url, headers=headers, timeout=10)
        expected = (206, result.read_bytes()[10:20]) if same else (200, result.read_bytes())
        assert (answer.status_code, answer.content) == expected, condition
        assert answer.headers["ETag"] == etag
    beyond = {"Range": "bytes=5000-", "If-Range": '"other"'}
    assert requests.get(url, headers=beyond, timeout=10).status_code == 200
    assert requests.get(url, headers={"If-Range": '"other"'}, timeout=10).status_code == 200


def test_nothing_but_results_is_served(settings: Settings, result: Path, base: str) -> None:
    (settings.output / "other.mp4").write_bytes(b"other")
    (settings.output_folder / "plain.mp4").write_bytes(b"plain")
    (settings.output_folder / ("a" * 32 + ".json")).write_bytes(b"{}")
    (settings.output_folder / ("b" * 32 + ".mp4")).symlink_to(settings.output / "other.mp4")
    names = ["other.mp4", "../other.mp4", "..%2fother.mp4", "%2e%2e%2fother.mp4", "plain.mp4", "a" * 32 + ".json"]
    names += [
        "b" * 32 + ".mp4",
        "c" * 32 + ".mp4",
        result.name + "%00",
        result.name.upper(),
        "",
        "..",
        "%2fetc%2fpasswd",
    ]
    names += [f"../{SUBFOLDER}/{result.name}", result.name + "/", "..%5cother.mp4"]
    with requests.Session() as session:
        for name in names:
            request = requests.Request("GET", base).prepare()
            request.url = f"{base}/fal/cdn/results/{name}"
            assert session.send(request, timeout=10).status_code == 404, name


def test_a_result_can_be_the_next_requests_input(settings: Settings, store: Store, result: Path) -> None:
    with pytest.raises(InputError, match="no audio"):  # the bytes are no sound, but they were read
        bring(f"http://unreachable.invalid:1/fal/cdn/results/{result.name}", settings, store)
    result.write_bytes(wav())
    assert bring(f"https://any.host/fal/cdn/results/{result.name}", settings, store).startswith(SUBFOLDER)


@pytest.mark.parametrize("path", [f"files/{'a' * 32}/a.wav", f"results/{'a' * 32}_00001_.mp4"])
def test_a_file_of_this_server_that_has_expired_is_told_as_that(path: str, tmp_path: Path) -> None:
    settings = make_settings(tmp_path)  # its own address is none that it calls
    with opened(settings) as store:
        with pytest.raises(InputError, match=r"^audio_url: this server has no such file, .* upload it again"):
            bring(f"http://{HERE}:8188/fal/cdn/{path}", settings, store)
        with pytest.raises(InputError, match="is a private"):
            bring(f"http://{HERE}:8188/other/{path}", settings, store)


def test_a_data_uri_holds_the_result(result: Path) -> None:
    result.write_bytes(os.urandom(results.PIECE + 1))  # no multiple of three bytes, in two pieces

    async def whole() -> tuple[bytes, int]:
        video = results.InlineResult.opened(result)
        return b"".join([piece async for piece in video.pieces()]), len(video)

    told, size = asyncio.run(whole())
    head, _, body = told.partition(b",")
    assert head == b"data:video/mp4;base64" and base64.b64decode(body) == result.read_bytes() and len(told) == size


def test_an_inline_result_stays_ten_minutes_after_its_first_reader_or_an_hour(settings: Settings) -> None:
    assert not inline_gone(1000, None, 1000 + 3599, settings) and inline_gone(1000, None, 1000 + 3600, settings)
    assert not inline_gone(1000, 4000, 4000 + 599, settings) and inline_gone(1000, 4000, 4000 + 600, settings)
    assert inline_gone(1000, 1001, 1000 + 700, settings)
