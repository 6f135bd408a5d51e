"""Opens a sound or video file with FFmpeg and yields the frames of one of its streams, whatever is damaged in it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.stream import Disposition

from ..errors import InputError, no_such_file
from .promised import MOST_SAMPLES, promised_samples

# Tags may be in any encoding. PyAV before version 19 needs an option for that; newer versions do not.
TAGS = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}


@contextmanager
def open_media(path: Path, example: str) -> Iterator[Any]:
    """Opens the file as an av container for reading. example: the format that the message about
    another file proposes.

    Raises InputError, which names the file, if it is missing or FFmpeg cannot read it.
    """
    name = path.name or str(path)
    if path.is_dir():
        raise InputError(f"{name}: is a folder; name one audio or video file in it.")
    if not path.is_file():
        raise no_such_file(name)
    if not path.stat().st_size:
        raise InputError(f"{name}: the file is empty; copy or export it again.")
    try:
        with path.open("rb") as file, open_bytes(file) as container:
            yield container
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"{name}: cannot be read as audio or video ({reason}); it may be cut short or not a media file: "
            f"export it again, for example as {example}."
        ) from error


def open_bytes(file: BinaryIO, **options: str) -> Any:
    """An open file as an av container. FFmpeg gets no protocols, so that a playlist cannot make it read other files or
    the network. options: FFmpeg's other ones.

    Raises av.FFmpegError if FFmpeg cannot read it, or would need any amount of memory for its header alone.

    PyAV's messages are off, as they are unless another package wants them (torchvision before 0.24 does): a decoder's
    thread would wait for Python's lock to tell an error, and whoever closes the decoder holds that lock until the
    thread ends.
    """
    if promised_samples(file) > MOST_SAMPLES:
        raise av.InvalidDataError(errno.EINVAL, f"its header promises more than {MOST_SAMPLES} packets")
    av.logging.set_level(None)
    return av.open(file, options={"protocol_whitelist": "none", **options}, **TAGS)


def packets_of(container: Any, *streams: Any) -> Iterator[Any]:
    """Yields the packets of these streams, or of all. A truncated file ends at its last packet."""
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            continue  # after an error, the iterator is at its end
        except IndexError:  # PyAV raises it for a packet of a stream that the file's header does not have
            packets = container.demux(*streams)
            continue
        if packet is None:
            return
        yield packet


def frames_of_stream(container: Any, stream: Any, damaged: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """Yields decoded frames. A damaged packet is skipped, after a call of `damaged`."""
    yield from frames_of_packets(packets_of(container, stream), damaged)


def frames_of_packets(packets: Iterable[Any], damaged: Callable[[], None]) -> Iterator[Any]:
    """Yields the frames that packets of one stream become, as `frames_of_stream`."""
    for packet in packets:
        try:
            frames = packet.decode()
        except av.FFmpegError:
            damaged()
            continue
        yield from frames


def picture_stream(container: Any) -> Any:
    """The first stream with a moving picture; None if the file has none, for instance only a cover.

    An animated AVIF has a stream for its still picture before that.
    """
    moving = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    return next((stream for stream in moving if stream.frames != 1), next(iter(moving), None))


def film_start(path: Path, example: str) -> Fraction | None:
    """The time of the first picture in seconds; None if the file has no moving picture or does not say the time.

    A recording may begin between two keyframes: what comes before the first picture that can be decoded is not seen.
    Raises InputError as `open_media`.
    """
    with open_media(path, example) as container:
        stream = picture_stream(container)
        if stream is None or stream.time_base is None:
            return None
        decoded = iter(()) if stream.codec_context is None else frames_of_stream(container, stream)
        frame = next(decoded, None)
        start = stream.start_time if frame is None else frame.dts if frame.pts is None else frame.pts
        return None if start is None else start * Fraction(stream.time_base)
