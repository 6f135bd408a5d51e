"""Requests on their way into the queue."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ...ltx.errors import InputError
from ..applications import Application
from ..database import rows
from ..database.rows import StoredRequest
from ..database.store import Store
from ..files.media import localize
from ..settings import Settings
from .preparation import Preparation


@dataclass(frozen=True)
class Submission:
    """What a submission says beside its body. base_url: scheme and host of this server, as the client knows them."""

    base_url: str
    priority: int = 0
    webhook_url: str | None = None
    idempotency_key: str | None = None
    start_timeout: float | None = None


class ReusedKey(Exception):
    """The idempotency key belongs to another request."""


class Submissions:
    """queued: called when a request has come into the queue."""

    def __init__(
        self, preparation: Preparation, database: Store, settings: Settings, queued: Callable[[], None]
    ) -> None:
        self._preparation, self._store, self._settings = preparation, database, settings
        self._queued = queued

    async def submit(
        self, application: Application, body: Any, digest: str, submission: Submission
    ) -> tuple[StoredRequest, int]:
        """The request, and how many wait before it. digest: of the body. Errors: Invalid, ModelMissing, ReusedKey."""
        key = submission.idempotency_key
        if key and (found := await self._store.run(_retried, application.id, key, digest)):
            return found
        checked = await self._preparation.admit(application, body)
        arguments, there = dict(checked.arguments), {}
        for field, value in checked.files.items():
            if value[:5].lower() == "data:":  # large, and wrong ones are told at once
                try:
                    there[field] = await localize(value, field, application.files[field], self._settings, self._store)
                except InputError as error:
                    raise application.invalid_from(error, field) from None
                arguments[field] = f"{value[: value.find(',') + 1][:100]}…"
        request = StoredRequest(
            id=str(uuid.uuid4()),
            app=application.id,
            arguments=arguments,
            media=there,
            ready=there.keys() == checked.files.keys(),
            sync_mode=checked.sync_mode,
            digest=digest,
            priority=submission.priority,
            idempotency_key=key,
            base_url=submission.base_url,
            webhook_url=submission.webhook_url,
            start_timeout=submission.start_timeout,
            created=time.time(),
        )
        try:
            position = await self._store.run_durably(_insert, request, checked.notes)
        except IntegrityError:  # a retry that came in at the same moment
            found = await self._store.run(_retried, application.id, key, digest) if key else None
            if not found:
                raise
            return found
        self._queued()
        return request, position


def _insert(session: Session, request: StoredRequest, notes: tuple[str, ...]) -> int:
    session.add(request)
    session.flush()
    for line in notes:
        rows.add_log(session, request.id, line, request.created, "WARN")
    return rows.position(session, request)


def _retried(session: Session, app: str, key: str, digest: str) -> tuple[StoredRequest, int] | None:
    found = rows.find_retried(session, app, key)
    if found and found.digest != digest:
        raise ReusedKey(key)
    return (found, rows.position(session, found)) if found else None
