"""Reads the bodies of requests within limits of size, depth, time and number."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import StreamReader, web

from ...ltx.characters import is_whole
from ..applications.inputs import HALF_TEXT, digest, read_json
from ..files.data_uris import ArrivedFile
from ..files.incoming import Incoming, as_arriving, in_larger, in_thread
from ..settings import Settings
from ..waiting import TooSlowError, paced
from .answers import RETRY, Refusal
from .json_reader import JsonReader, TooMuch

SMALL_BODY = 2**16  # bytes of an announcement
IDLE_SECONDS = 30.0  # within which some bytes must come
LEAST_RATE, RATE_SECONDS = 1024, 30.0  # bytes a second that must come on average over so many seconds
MOST_AT_ONCE = 128  # bodies that are being received at once
SLOW_RATE, GRACE_SECONDS = 2**14, 2.0
"""Bytes a second below which a body gives way if all places are taken, and the seconds for which it does not."""
AT_ONCE = 2**14  # bytes that the event loop parses itself; a thread costs milliseconds while a job runs
TOO_LARGE = "The body is too large; upload the media and send their URLs."


class GaveWayError(Exception):
    """The body gave its place to a new one."""


@dataclass(frozen=True)
class _Arriving:
    """A body that is being received."""

    content: StreamReader
    begun: float

    def rate(self, now: float) -> float:
        """Bytes a second so far. It is infinite for a whole body, and for one that has only just begun."""
        if self.content.is_eof() or now < self.begun + GRACE_SECONDS:
            return math.inf
        return self.content.total_bytes / (now - self.begun)


class Gate:
    """Limits how many bodies are received at once. If all places are taken, the slowest body gives way to a new one."""

    def __init__(self, most: int = MOST_AT_ONCE) -> None:
        self._most = most
        self._arriving: dict[object, _Arriving] = {}

    @contextmanager
    def __call__(self, request: web.Request) -> Iterator[None]:
        """Takes a place for the body of that request. Errors: 503 if all places are taken and no body is slow."""
        if len(self._arriving) >= self._most and not self._make_room():
            raise _too_many()
        key = object()
        self._arriving[key] = _Arriving(request.content, time.monotonic())
        try:
            yield
        finally:
            self._arriving.pop(key, None)

    def _make_room(self) -> bool:
        """Ends the slowest body, and says whether one was slow enough."""
        now = time.monotonic()
        slowest = min(self._arriving, key=lambda key: self._arriving[key].rate(now), default=None)
        if slowest is None or self._arriving[slowest].rate(now) > SLOW_RATE:
            return False
        self._arriving.pop(slowest).content.set_exception(GaveWayError())
        return True


def _too_many() -> Refusal:
    return Refusal(503, "Too many bodies are being sent at once; try again.", headers={**RETRY, "Connection": "close"})


async def pieces_of(request: web.Request) -> AsyncIterator[bytes]:
    """Yields a request's body. Errors: 408 if it comes too slowly; 503 if it gave way to another one; 400 if it is not
    divided as its headers say."""
    try:
        async for piece in in_larger(paced(request.content.readany, IDLE_SECONDS, LEAST_RATE, RATE_SECONDS)):
            yield piece
    except TooSlowError as error:
        raise Refusal(408, f"The body came too slowly: {error}.", headers={"Connection": "close"}) from None
    except GaveWayError:
        raise _too_many() from None
    except web.RequestPayloadError:
        raise Refusal(
            400,
            "The body is broken: it is not sent in the chunks that it announces.",
            headers={"Connection": "close"},
        ) from None


def check_json(request: web.Request) -> None:
    """Checks the content type. Errors: 415 for another one, which a foreign page could send without asking."""
    if request.content_type != "application/json":
        raise Refusal(415, "Send Content-Type: application/json.")


async def read_small_json(request: web.Request, longest: int = SMALL_BODY) -> Any:
    """Reads the body of a route with small JSON. Errors: 415, 413, 408, 400."""
    check_json(request)
    body = bytearray()
    async for piece in pieces_of(request):
        body += piece
        if len(body) > longest:
            raise Refusal(413, f"The body is larger than {longest // 1024} KiB.")
    try:
        value = await in_thread(json.loads, body) if len(body) > AT_ONCE else json.loads(body)
        whole = is_whole(value)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is no JSON: {error}"[:200]) from error
    if not whole:
        raise Refusal(400, HALF_TEXT)
    return value


@dataclass(frozen=True)
class ReadBody:
    """A submission's JSON. files: its data URIs; `value` has a short text in place of each."""

    value: Any
    digest: str
    files: dict[str, ArrivedFile]


@asynccontextmanager
async def read_submission(request: web.Request, names: Collection[str], settings: Settings) -> AsyncIterator[ReadBody]:
    """Reads the body of a submission. Files that were not kept are deleted at the end. names: the inputs that are
    files.

    Errors: 415, 413, 408; Invalid if it is no JSON; OSError if the disk takes nothing.
    """
    check_json(request)
    longest = settings.max_body
    if (request.content_length or 0) > longest:
        raise Refusal(413, TOO_LARGE)
    reader = JsonReader(names, lambda: Incoming(settings.input_folder, settings.max_media))
    size = 0
    try:
        async for piece in pieces_of(request):
            size += len(piece)
            if size > longest:
                raise Refusal(413, TOO_LARGE)
            if len(piece) > AT_ONCE:
                await as_arriving(reader.feed, piece)
            else:
                reader.feed(piece)
        text = bytes(reader.text)
        value, hashed = await in_thread(_parsed, text) if len(text) > AT_ONCE else _parsed(text)
        yield ReadBody(value, hashed, reader.files)
    except TooMuch as error:
        raise Refusal(413, str(error)) from None
    finally:
        reader.discard()


def _parsed(text: bytes) -> tuple[Any, str]:
    value = read_json(text)
    return value, digest(value)
