"""Answers in the form that both clients read, and exceptions that become such answers."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from ..applications.inputs import Invalid
from ..database.rows import StoredRequest
from ..database.store import StoreFailed
from ..faults import log_unexpected

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RETRY = {"Retry-After": "5"}


class Refusal(Exception):
    """An answer without a result: its status and one sentence. kind: its `error_type`, if it has one."""

    def __init__(
        self, status: int, sentence: str, kind: str | None = None, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.kind, self.headers = status, kind, headers


def problem(status: int, sentence: str, **headers: str) -> web.Response:
    """Builds an answer without a result."""
    return web.json_response({"detail": sentence}, status=status, headers=headers)


def answering(handler: Handler) -> Handler:
    """Wraps a handler and turns its exceptions into answers."""

    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Invalid as error:
            return web.json_response({"detail": error.detail}, status=422)
        except Refusal as error:
            body = {"detail": str(error), **({"error_type": error.kind} if error.kind else {})}
            return web.json_response(body, status=error.status, headers=error.headers)
        except StoreFailed:  # the store has logged why
            return problem(503, "The server's database cannot be used at the moment; try again.", **RETRY)
        except (web.HTTPException, ConnectionError):
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                return _failed(request, error)
            return problem(507, "The server's disk is full; try again when there is room.", **RETRY)
        except Exception as error:  # a bug must end this request alone, with JSON that clients can read
            return _failed(request, error)

    return answered


def _failed(request: web.Request, error: Exception) -> web.Response:
    log_unexpected(f"{request.method} {request.match_info.route.resource} failed", error)
    return problem(500, "The server failed because of a bug; its log has the details.")


def about(found: StoredRequest, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer about one request, with the headers that the clients read."""
    return web.json_response(body, status=status, headers={**_known(found), **(headers or {})})


def about_in_pieces(found: StoredRequest, pieces: AsyncIterator[bytes], size: int) -> web.Response:
    """The same of JSON that is made while it is sent. size: its bytes."""
    headers = {**_known(found), "Content-Length": str(size)}
    return web.Response(body=pieces, headers=headers, content_type="application/json", charset="utf-8")


def _known(found: StoredRequest) -> dict[str, str]:
    return {"X-Fal-Request-Id": found.id, **({"X-Ltx-Safety": found.safety} if found.safety else {})}
