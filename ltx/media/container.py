"""Opens a sound or video file with FFmpeg and yields the frames of one of its streams, whatever is damaged in it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.format import Flags
from av.stream import Disposition

from ..errors import InputError, no_such_file
from .promised import MOST_SAMPLES, counted_frames, promised_samples
from .rates import frame_rate

USUAL_RATE = Fraction(25)  # of a file that does not tell its rate, as FFmpeg assumes for raw video
COARSEST = Fraction(1, 100)  # seconds; a coarser tick counts frames, and its times are not rounded
TURN, EARLY = 2**31, 2**20  # milliseconds after which FLV's clock begins anew, and before 0 at which a file may begin
ROUNDED = Fraction(1, 10)  # share by which the mean of a few lengths, rounded to milliseconds, may be wrong
MAX_RATE = 1000  # frames per second; a higher number in a header means nothing
MISSING = Fraction(1, 2)  # seconds by which a header may be wrong
REORDERED = 16  # pictures at most that a codec stores between one and those that are shown before it
TELLING = {"wav", "w64", "aiff", "au", "caf", "flac", "tta", "wv", "ape", "mov", "matroska", "asf", "avi", "flv"}
"""FFmpeg's names of the formats whose header tells how long the sound is. Of others it guesses that by the bytes."""
TEXTS = ("tty", "bin", "xbin", "adf", "idf")
"""FFmpeg's names of the formats whose pictures are text in a terminal: it takes any .txt for one of them."""
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

    Raises av.FFmpegError if FFmpeg cannot read it, would need any amount of memory for its header alone, or would draw
    its text.

    PyAV's messages are off, as they are unless another package wants them (torchvision before 0.24 does): a decoder's
    thread would wait for Python's lock to tell an error, and whoever closes the decoder holds that lock until the
    thread ends.
    """
    if promised_samples(file) > MOST_SAMPLES:
        raise av.InvalidDataError(errno.EINVAL, f"its header promises more than {MOST_SAMPLES} packets")
    av.logging.set_level(None)
    container = av.open(file, options={"protocol_whitelist": "none", **options}, **TAGS)
    if container.format.name in TEXTS:
        container.close()
        raise av.InvalidDataError(errno.EINVAL, "it is text")
    return container


def packets_of(container: Any, *streams: Any) -> Iterator[Any]:
    """Yields the packets of these streams, or of all. A truncated file ends at its last packet, and a damaged one goes
    on behind the damage if FFmpeg can read there."""
    packets, stuck, turns = container.demux(*streams), False, container.format.name == "flv"
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            if not stuck:  # after an error, the iterator is at its end
                packets, stuck = container.demux(*streams), True
            continue
        except IndexError:  # PyAV raises it for a packet of a stream that the file's header does not have
            packets = container.demux(*streams)
            continue
        if packet is None:
            return
        stuck = False
        if turns:
            packet.pts, packet.dts = unwrapped(packet.pts), unwrapped(packet.dts)
        yield packet


def unwrapped(time: int | None) -> int | None:
    """A time of FLV as it was written, in milliseconds. Those before 0 lose their sign, and FFmpeg takes those behind
    them for later ones, after a whole turn of the clock."""
    return time if time is None or time < TURN - EARLY else (time + EARLY) % TURN - EARLY


def frames_of_stream(container: Any, stream: Any, damaged: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """Yields decoded frames. A damaged packet is skipped, after a call of `damaged`."""
    yield from frames_of_packets(packets_of(container, stream), damaged)


def frames_of_packets(packets: Iterable[Any], damaged: Callable[[], None]) -> Iterator[Any]:
    """Yields the frames that packets of one stream become, as `frames_of_stream`."""
    for packet in packets:
        if is_held(packet):
            continue
        try:
            frames = packet.decode()
        except av.FFmpegError:
            damaged()
            continue
        yield from frames


def is_held(packet: Any) -> bool:
    """Whether a packet is empty and has a time: the picture before it is shown on, as Theora and AVI store it. A
    decoder would take it for damage, or for the end. The packet after a stream's last one has no time."""
    return not packet.size and (packet.pts is not None or packet.dts is not None)


def picture_stream(container: Any) -> Any:
    """The first stream with a moving picture; None if the file has none, for instance only a cover.

    An animated AVIF has a stream for its still picture before that.
    """
    moving = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    return next((stream for stream in moving if stream.frames != 1), next(iter(moving), None))


def sound_stream(container: Any) -> Any:
    """The stream of sound that FFmpeg would play; the first that can be decoded if that one cannot, as beside spatial
    sound. None if the file has none."""
    best = container.streams.best("audio")
    if best is None or best.codec_context is not None:
        return best
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), best)


def is_raw(stream: Any) -> bool:
    """Whether the file has no container, and so no times: FFmpeg makes them up, for several codecs wrongly."""
    return bool(stream.container.format.flags & Flags.no_timestamps.value)


def is_still(container: Any) -> bool:
    """Whether FFmpeg takes the file for a still picture, whose formats it has in two forms each."""
    return container.format.name == "image2" or container.format.name.endswith("_pipe")


def is_matroska(container: Any) -> bool:
    return "matroska" in container.format.name


def told_rate(stream: Any) -> Fraction | None:
    """The usual frame rate, exact also where the container stores rounded times. None if the file does not tell it, as
    the recordings of browsers do not: for a guess FFmpeg then takes the ticks of the clock, 1000 a second. Of a raw
    stream the average is always USUAL_RATE, and the guess is what the stream's own headers say. Where a file with that
    clock does not tell the rate and stores pictures in another order, the average is that of a few rounded lengths, and
    the guess is right."""
    clock = 1 / Fraction(stream.time_base)
    guesses = [rate for rate in (stream.guessed_rate, stream.base_rate) if rate != clock or clock <= 1 / COARSEST]
    average, guess = stream.average_rate, next(filter(None, guesses), None)
    odd = average and (is_matroska(stream.container) or (clock == 1000 and average.denominator not in (1, 1001)))
    rounded = odd and guess and abs(guess / average - 1) < ROUNDED
    for rate in (*guesses, average) if is_raw(stream) or rounded else (average, *guesses):
        if rate and 0 < rate <= MAX_RATE:
            return frame_rate(float(rate))
    return None


def mean_rate(count: int, first: Fraction = Fraction(0), last: Fraction = Fraction(0)) -> Fraction:
    """The frame rate of so many pictures with these times of the first and the last one."""
    return frame_rate(min(MAX_RATE, float((count - 1) / (last - first)))) if first < last else USUAL_RATE


def told_time(item: Any, stream: Any) -> int | None:
    """When a packet or a frame of a stream is shown, in its ticks; None if the file does not tell it.

    Matroska tells no times before 0 that FFmpeg reads: it drops them, or puts others in their place, which are sums of
    rounded lengths.
    """
    time = item.pts if item.pts is not None else item.dts
    return None if time is not None and time < 0 and is_matroska(stream.container) else time


def promised_length(stream: Any, rate: int, file: BinaryIO) -> Fraction:
    """The seconds of sound at that rate that a file's header promises beside no picture; 0 if it does not say."""
    container = stream.container
    name = container.format.name.partition(",")[0]
    if name == "mp3":
        return Fraction(counted_frames(file) * (1152 if rate >= 32_000 else 576), rate)
    if name not in TELLING:
        return Fraction(0)
    if stream.duration:
        return stream.duration * Fraction(stream.time_base)
    begun = container.start_time or 0 if is_matroska(container) else 0  # Matroska's length counts from time 0
    return Fraction((container.duration or 0) - max(0, begun), av.time_base)


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
        start = stream.start_time if frame is None else told_time(frame, stream)
        if start is not None:
            return start * Fraction(stream.time_base)
        if frame is None or is_raw(stream):
            return None
    return untold_start(path, example)


def untold_start(path: Path, example: str) -> Fraction | None:
    """The time of a first picture whose time the file does not tell, in seconds: those without a time last until the
    first time that is told. None if the file tells no time at all. Raises InputError as `open_media`."""
    untold, times = 0, []
    with open_media(path, example) as container:
        stream = picture_stream(container)
        for packet in packets_of(container, stream):
            time = told_time(packet, stream)
            if not packet.size or packet.is_discard:
                continue
            if time is None:
                untold += 1
            else:
                times.append(time * Fraction(packet.time_base))
            if len(times) > REORDERED:
                break
        rate = told_rate(stream)
    if not times:
        return None
    return min(times) - untold / (rate or mean_rate(len(times), min(times), max(times)))
