"""A request's end: written once, told to whoever is to be told, and what an attempt without a result left removed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sqlalchemy.orm import Session

from ..database import rows
from ..database.rows import StoredRequest
from ..database.store import Store
from ..files.results import result_url, with_url
from ..settings import SUBFOLDER, Settings
from ..webhooks.deliveries import Webhooks
from .endings import RequestFailed
from .journal import Journal


class Finishing:
    def __init__(self, database: Store, settings: Settings, webhooks: Webhooks, journal: Journal) -> None:
        self._store, self._settings, self._webhooks, self._journal = database, settings, webhooks, journal

    async def finish(self, request: StoredRequest, ending: RequestFailed | dict[str, Any]) -> None:
        """Ends a request once, and enqueues its webhook in the same transaction. ending: why, or the result."""
        failed = isinstance(ending, RequestFailed)
        if failed:
            self._journal.log(request.id, str(ending), "ERROR")
        await self._journal.flush()
        values = ending.values if failed else ending
        ended = await self._store.run_durably(_end, request, values, self._webhooks, self._settings)
        if not ended or failed:
            await asyncio.to_thread(self.discard_files, request.token)
        if request.webhook_url:
            self._webhooks.wake()
        self._journal.all_changed()
        self._journal.changed(request.id)

    def discard_files(self, token: str | None) -> None:
        """Removes what an attempt left that came to no result."""
        if token:
            for folder in (self._settings.output_folder, self._settings.temp / SUBFOLDER):
                for path in folder.glob(f"*{token}*"):  # half-written ones begin with a dot
                    path.unlink(missing_ok=True)


def _end(
    session: Session, request: StoredRequest, values: dict[str, Any], webhooks: Webhooks, settings: Settings
) -> bool:
    current = rows.find(session, request.id)
    if current is None or current.lease_server != request.lease_server:
        return False
    ended = rows.finish(session, current, time.time(), **values)
    if ended and current.webhook_url:
        webhooks.enqueue_in(session, current.id, current.webhook_url, webhook_body(current, settings))
    return ended


def webhook_body(request: StoredRequest, settings: Settings) -> dict[str, Any]:
    """What a webhook is told of an ended request. A result that is kept nowhere does not go into its queue, either."""
    body: dict[str, Any] = {"request_id": request.id, "gateway_request_id": request.id}
    if not request.result:
        payload = {"detail": request.error_detail or request.error}
        return {**body, "status": "ERROR", "error": request.error, "payload": payload}
    body |= {"status": "OK", "error": None}
    if request.sync_mode:
        reason = "sync_mode: the result is a data URI, which webhooks are not sent; read it at the response URL."
        return {**body, "payload": None, "payload_error": reason}
    url = result_url(request.result["video"]["file_name"], request.base_url, settings)
    return {**body, "payload": with_url(request.result, url)}
