"""Serves results by their random names to anyone who knows one, with ranges, which players need."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web

from ..files.incoming import in_thread
from ..files.results import CONTENT_TYPES, RESULTS, result_path
from ..settings import Settings
from .answers import problem
from .messages import PlainProblem
from .operations import BINARY, Answer, Operation, RouteParameter

FILE_ANSWERS = {
    200: Answer("The file.", content="*/*", schema=BINARY),
    206: Answer("A range of the file.", content="*/*", schema=BINARY),
    304: Answer("The file is the one that the client has.", content=""),
    404: Answer("There is no such file.", PlainProblem),
    412: Answer("The file is not the one that the client names.", content=""),
    416: Answer("The file has no such range.", content=""),
}
RANGE_HEADERS = tuple(RouteParameter(name, "header", {"type": "string"}) for name in (hdrs.RANGE, hdrs.IF_RANGE))
RANGE = re.compile("bytes=(?:[0-9]{1,19}-[0-9]{0,19}|-[0-9]{1,19})", re.ASCII | re.IGNORECASE)
"""One range. Whoever asks for several, in another unit or in a broken form gets the whole file, as RFC 9110 allows."""
NOTHING = re.compile("bytes=-0+", re.ASCII | re.IGNORECASE)


def operations(settings: Settings) -> list[Operation]:
    async def result(request: web.Request) -> web.StreamResponse:
        path = await in_thread(result_path, request.match_info["name"], settings)
        if path is None:
            return problem(404, "No such result; it may have expired.")
        return await file_answer(request, path, CONTENT_TYPES[path.suffix[1:]], path.name)

    name = RouteParameter("name", "path", {"type": "string"})
    return [
        Operation(
            name="result_file",
            method="GET",
            path=RESULTS + "{name}",
            handler=result,
            summary="A result's file.",
            answers=FILE_ANSWERS,
            parameters=(name, *RANGE_HEADERS),
            needs_key=False,
            head=True,
        )
    ]


class WholeFile(web.FileResponse):
    """A file for a client whose wish for a range does not count."""

    async def prepare(self, request: web.BaseRequest) -> Any:
        headers = request.headers.copy()
        headers.popall(hdrs.RANGE, None)
        headers.popall(hdrs.IF_RANGE, None)
        return await super().prepare(request.clone(headers=headers))


async def file_answer(request: web.Request, path: Path, content_type: str, name: str) -> web.StreamResponse:
    """The answer with a client's file: whole, or the range that it asks for. name: for the client.

    aiohttp reads an If-Range with an ETag as if it were not there, and would join the end of one file to the beginning
    of another.
    """
    headers, wanted = file_headers(content_type, name), request.headers.get(hdrs.RANGE)
    if wanted is None:
        return web.FileResponse(path, headers=headers)
    try:
        facts = await in_thread(path.stat)
    except FileNotFoundError:  # deleted just now
        return problem(404, "No such file; it may have expired.")
    if request.method != "GET" or not RANGE.fullmatch(wanted.strip()) or not _is_unchanged(request, facts):
        return WholeFile(path, headers=headers)
    if NOTHING.fullmatch(wanted.strip()):
        return web.Response(status=416, headers={**headers, hdrs.CONTENT_RANGE: f"bytes */{facts.st_size}"})
    return web.FileResponse(path, headers=headers)


def _is_unchanged(request: web.Request, facts: os.stat_result) -> bool:
    """Whether the file is still the one of which the client has a part: If-Range has its ETag or its date, as
    web.FileResponse tells them, or is absent."""
    condition = request.headers.get(hdrs.IF_RANGE, "").strip()
    if not condition or condition == f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"':
        return True
    return request.if_range is not None and request.if_range.timestamp() == math.ceil(facts.st_mtime)


def file_headers(content_type: str, name: str) -> dict[str, str]:
    """Headers for a client's file: a browser plays or saves it, and never runs it on this origin."""
    plays = re.fullmatch(r"(audio|video|image)/(?!svg|.*xml)[\w.+-]+", content_type)  # XML may hold scripts
    return {
        "Content-Type": content_type if plays else "application/octet-stream",
        "Content-Disposition": f'{"inline" if plays else "attachment"}; filename="{name}"',
        "X-Content-Type-Options": "nosniff",
    }
