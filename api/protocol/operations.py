"""Routes that describe themselves: the OpenAPI document says exactly what the server registers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel

from ..settings import Settings
from .access import guard
from .answers import Handler, answering
from .messages import PlainProblem
from .packed import unpacked

JSON, BYTES = "application/json", "application/octet-stream"
BINARY = {"type": "string", "format": "binary"}
"""JSON schema of the bytes of a file."""


@dataclass(frozen=True)
class Answer:
    """An answer's meaning and body: a model, or anything of that content type with that JSON schema. content: empty for
    an answer without a body."""

    meaning: str
    model: type[BaseModel] | None = None
    content: str = JSON
    schema: Mapping[str, Any] | None = None


UNAVAILABLE = {
    503: Answer("The server cannot do this at the moment.", PlainProblem),
    507: Answer("The server's disk is full.", PlainProblem),
}
"""Answers of every route that writes."""


@dataclass(frozen=True)
class RouteParameter:
    """A parameter. schema: of its text, as JSON schema."""

    name: str
    where: Literal["path", "query", "header"]
    schema: Mapping[str, Any]
    description: str = ""
    required: bool = False


@dataclass(frozen=True)
class Body:
    """A body that a route takes: a model, or anything of that content type with that JSON schema."""

    model: type[BaseModel] | None = None
    schema: Mapping[str, Any] | None = None
    content: str = JSON


@dataclass(frozen=True)
class Operation:
    """One documented route.

    path: below the prefix, with aiohttp's patterns for its parameters. needs_key: whether a client needs the key. also:
    further paths that lead to it; the document does not list them. head: whether it answers HEAD as GET. `parameters`
    describes those of the path, too.
    """

    name: str
    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int | str, Answer]
    parameters: tuple[RouteParameter, ...] = ()
    body: Body | None = None
    needs_key: bool = True
    also: tuple[str, ...] = ()
    head: bool = False

    @property
    def plain_path(self) -> str:
        """The path without aiohttp's patterns: `/files/{id}`."""
        return re.sub(r"{(\w+):[^{}]*(?:{[^{}]*}[^{}]*)?}", r"{\1}", self.path)


def routes(operations: Iterable[Operation], settings: Settings) -> list[web.RouteDef]:
    """The routes of all operations, for the server's app."""
    found = []
    for operation in operations:
        guarded = guard(operation.handler, settings) if operation.needs_key else operation.handler
        handler = unpacked(answering(guarded))
        options = {"allow_head": operation.head} if operation.method == "GET" else {}
        for path in (operation.path, *operation.also):
            found.append(web.RouteDef(operation.method, settings.prefix + path, handler, options))
    return found
