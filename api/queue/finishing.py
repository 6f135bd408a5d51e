"""Ends requests: writes the end once, tells it, and removes what an attempt without a result left."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sqlalchemy.orm import Session

from ..database import rows
from ..database.rows import StoredRequest
from ..database.store import Store, patiently
from ..files import owners
from ..files.results import result_url, with_url
from ..settings import Settings
from ..webhooks.deliveries import Webhooks
from .endings import RequestFailed
from .journal import Journal


class Finishing:
    """Writes the ends of requests."""

    def __init__(self, database: Store, settings: Settings, webhooks: Webhooks, journal: Journal) -> None:
        self._store, self._settings, self._webhooks, self._journal = database, settings, webhooks, journal

    async def finish_patiently(self, request: StoredRequest, ending: RequestFailed | dict[str, Any]) -> None:
        """As `finish`, and repeats it until the store has it."""
        await patiently(lambda: self.finish(request, ending))

    async def finish(self, request: StoredRequest, ending: RequestFailed | dict[str, Any]) -> None:
        """Ends a request once, and enqueues its webhook in the same transaction. ending: the failure, or the result.

        Errors: StoreFailed; nothing has happened then.
        """
        await self._journal.flush()
        failed = isinstance(ending, RequestFailed)
        if failed:  # before the end is written: if the server died in between, no row would name these files
            await asyncio.to_thread(self.discard_files, request.token)
        ended = await self._store.run_durably(_end, request, ending, self._webhooks, self._settings)
        if not ended and not failed:
            await asyncio.to_thread(self.discard_files, request.token)
        if request.webhook_url:
            self._webhooks.wake()
        self._journal.all_changed()
        self._journal.changed(request.id)

    def discard_files(self, token: str | None) -> None:
        """Removes the files of an attempt that has no result."""
        if token:
            for folder in (self._settings.output_folder, self._settings.passing_folder):
                for path in folder.glob(f"*{token}*"):  # names of half-written ones begin with a dot
                    owners.remove(path)


def _end(
    session: Session,
    request: StoredRequest,
    ending: RequestFailed | dict[str, Any],
    webhooks: Webhooks,
    settings: Settings,
) -> bool:
    current = rows.find(session, request.id, whole=True)
    if current is None or current.lease_server != request.lease_server:
        return False
    now, failed = time.time(), isinstance(ending, RequestFailed)
    if not rows.finish(session, current, now, **(ending.values if failed else ending)):
        return False
    if failed:
        rows.add_log(session, current.id, str(ending), now, "ERROR")
    if current.workflow is None:  # nobody can open the graph and run it again
        owners.give_up(session, [current.id], settings)
    if current.webhook_url:
        webhooks.enqueue_in(session, current.id, current.webhook_url, webhook_body(current, settings))
    return True


def webhook_body(request: StoredRequest, settings: Settings) -> dict[str, Any]:
    """The body of an ended request's webhook. A result that is stored nowhere is not put into it, either."""
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
