"""Serves results by their random names to anyone who knows one, with ranges, which players need."""

from __future__ import annotations

import re

from aiohttp import web

from ..files.incoming import in_thread
from ..files.results import CONTENT_TYPES, RESULTS, result_path
from ..settings import Settings
from .answers import problem
from .messages import PlainProblem
from .operations import BYTES, Answer, Operation, RouteParameter

FILE_ANSWERS = {
    200: Answer("The file.", None, BYTES),
    206: Answer("A range of the file.", None, BYTES),
    404: Answer("There is no such file.", PlainProblem),
    416: Answer("The file has no such range.", None, "text/plain"),
}


def operations(settings: Settings) -> list[Operation]:
    async def result(request: web.Request) -> web.StreamResponse:
        path = await in_thread(result_path, request.match_info["name"], settings)
        if path is None:
            return problem(404, "No such result; it may have expired.")
        return web.FileResponse(path, headers=file_headers(CONTENT_TYPES[path.suffix[1:]], path.name))

    name = RouteParameter("name", "path", {"type": "string"})
    return [
        Operation(
            name="result_file",
            method="GET",
            path=RESULTS + "{name}",
            handler=result,
            summary="A result's file.",
            answers=FILE_ANSWERS,
            parameters=(name,),
            needs_key=False,
            head=True,
        )
    ]


def file_headers(content_type: str, name: str) -> dict[str, str]:
    """Headers for a client's file: a browser plays or saves it, and never runs it on this origin."""
    plays = re.fullmatch(r"(audio|video|image)/(?!svg|.*xml)[\w.+-]+", content_type)  # XML may hold scripts
    return {
        "Content-Type": content_type if plays else "application/octet-stream",
        "Content-Disposition": f'{"inline" if plays else "attachment"}; filename="{name}"',
        "X-Content-Type-Options": "nosniff",
    }
