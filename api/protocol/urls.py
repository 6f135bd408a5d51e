"""Addresses of this server, as the client that asks knows it."""

from __future__ import annotations

import re

from aiohttp import web

from ..applications.application import owner_of
from ..database.rows import StoredRequest
from ..settings import Settings
from .answers import http_error

HOST = re.compile(r"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")


def base_url(request: web.Request) -> str:
    """Scheme and host of this server. Errors: 400 for a Host header that is none."""
    if not HOST.fullmatch(request.host):
        raise http_error(web.HTTPBadRequest, "The Host header is broken.")
    return f"{request.scheme}://{request.host}"


def request_urls(request: web.Request, found: StoredRequest, settings: Settings) -> dict[str, str]:
    """What answers about a request say of it: its id and its addresses."""
    url = f"{base_url(request)}{settings.prefix}/queue/{owner_of(found.app)}/requests/{found.id}"
    return {
        "request_id": found.id,
        "gateway_request_id": found.id,
        "response_url": url,
        "status_url": f"{url}/status",
        "cancel_url": f"{url}/cancel",
    }
