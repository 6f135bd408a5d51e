"""Answers in the form that both clients read, and exceptions that become such answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ..applications.inputs import Invalid
from ..database.rows import StoredRequest

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refusal(Exception):
    """An answer that is no result: its status and one sentence. kind: the `error_type`, where there is one."""

    def __init__(self, status: int, sentence: str, kind: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.kind = status, kind


def problem(status: int, sentence: str, **headers: str) -> web.Response:
    """An answer that is no result."""
    return web.json_response({"detail": sentence}, status=status, headers=headers)


def http_error(kind: type[web.HTTPException], sentence: str, **arguments: Any) -> web.HTTPException:
    """An exception that aiohttp itself answers, with our kind of body."""
    return kind(text=json.dumps({"detail": sentence}), content_type="application/json", **arguments)


def answering(handler: Handler) -> Handler:
    """The handler, its exceptions turned into answers."""

    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Invalid as error:
            return web.json_response({"detail": error.detail}, status=422)
        except Refusal as error:
            body = {"detail": str(error), **({"error_type": error.kind} if error.kind else {})}
            return web.json_response(body, status=error.status)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:
            logging.exception("LTX A2V: %s %s failed", request.method, request.path)
            return problem(500, "The server failed at this; its log says how.")

    return answered


def about(found: StoredRequest, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer about one request, whose headers the clients read."""
    known = {"X-Fal-Request-Id": found.id, **({"X-Ltx-Safety": found.safety} if found.safety else {})}
    return web.json_response(body, status=status, headers={**known, **(headers or {})})
