"""Access to uploads, and what all their routes share."""

from __future__ import annotations

import time

from aiohttp import web

from ..database.store import Store
from ..files import uploads
from ..files.uploads import FILES, Upload, UploadToken, token_hash
from ..settings import MIB, Settings
from .access import credentials, refusal, same
from .answers import Refusal
from .messages import PlainProblem
from .operations import UNAVAILABLE, Answer, RouteParameter
from .urls import base_url

FILE_ID = RouteParameter("id", "path", {"type": "string", "pattern": "^[0-9a-f]{32}$"})
FILE_NAME = RouteParameter("name", "path", {"type": "string"})
TOKEN = RouteParameter("token", "query", {"type": "string"})
ONE = FILES + "{id:[0-9a-f]{32}}/{name}"
ANSWERS = {
    400: Answer("The HTTP request is broken.", PlainProblem),
    401: Answer("The key or the upload's token is missing or wrong.", PlainProblem),
    403: Answer("A page of another origin asks.", PlainProblem),
    404: Answer("There is no such upload.", PlainProblem),
    408: Answer("The bytes came too slowly.", PlainProblem),
    409: Answer("The file is uploaded in parts, or a newer part of that number has come.", PlainProblem),
    410: Answer("This upload is complete.", PlainProblem),
    413: Answer("The file is too large.", PlainProblem),
    415: Answer("The body is compressed, or not announced as JSON.", PlainProblem),
    422: Answer("The announcement, the part's number or the list of parts is wrong.", PlainProblem),
    **UNAVAILABLE,
}
"""How the routes of uploads refuse."""


class UploadAccess:
    """Checks whether a client may add to an upload."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store

    async def check_bearer(self, request: web.Request) -> None:
        """Checks the Bearer token. A client without a token needs the access of the other routes. Errors: 401, 403."""
        token = credentials(request, "Bearer")
        if token is None:
            if refused := refusal(request, self._settings):
                raise refused
            return
        bearer = await self._store.read(lambda session: session.get(UploadToken, token_hash(token)))
        if bearer is None or time.time() >= bearer.until:
            raise _refused()

    async def upload_of(self, request: web.Request) -> Upload:
        """The upload at the request's address, if the client has the upload's own token or a Bearer token.

        Errors: 401.
        """
        upload = await self._store.read(uploads.get, request.match_info["id"])
        if upload is None or upload.multipart != request.match_info.get("multipart", upload.multipart):
            raise _refused()
        token = request.query.get(TOKEN.name)
        if token is None and credentials(request, "Bearer"):
            await self.check_bearer(request)
            return upload
        if token is None or not same(token_hash(token), upload.token) or time.time() >= upload.until:
            raise _refused()
        return upload

    def url(self, request: web.Request, upload: Upload) -> str:
        return f"{base_url(request, self._settings)}{self._settings.prefix}{FILES}{upload.id}/{upload.name}"

    def too_large(self) -> Refusal:
        cap = self._settings.max_upload // MIB
        return Refusal(413, f"The file is larger than {cap} MiB; the server's LTX_A2V_MAX_UPLOAD_MB sets that.")


def _refused() -> Refusal:
    return Refusal(401, "This upload needs its own token, which is valid for an hour; announce it again for a new one.")
