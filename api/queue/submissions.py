"""Takes requests into the queue."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from ...ltx.errors import InputError
from .. import clock
from ..applications import Application
from ..applications.inputs import CheckedRequest
from ..database import rows
from ..database.rows import StoredRequest
from ..database.store import Store, StoreConflict, StoreFailed
from ..files import owners
from ..files.data_uris import ArrivedFile
from ..files.media import Inbox
from ..settings import Settings
from .preparation import Preparation

LONGEST_KEPT = 100  # characters of a data URI that are stored


@dataclass(frozen=True)
class Submission:
    """A request that is being submitted. value: the JSON body; digest: its hash; files: the data URIs of its inputs.
    base_url: scheme and host of this server, as the client knows them. keep_seconds: how long after its end the client
    wishes to keep its files."""

    value: Any
    digest: str
    base_url: str
    files: Mapping[str, ArrivedFile] = field(default_factory=dict)
    priority: int = 0
    webhook_url: str | None = None
    idempotency_key: str | None = None
    start_timeout: float | None = None
    keep_seconds: float | None = None


class ReusedKey(Exception):
    """The idempotency key belongs to another request."""


class Submissions:
    """queued: is called when a request has come into the queue."""

    def __init__(
        self, preparation: Preparation, database: Store, settings: Settings, queued: Callable[[], None]
    ) -> None:
        self._preparation, self._store, self._settings = preparation, database, settings
        self._inbox = Inbox(settings, database)
        self._queued = queued

    async def submit(self, application: Application, submission: Submission) -> tuple[StoredRequest, int]:
        """Stores a request. Returns it and the number of those before it. Errors: Invalid, ModelMissing, ReusedKey,
        StoreFailed, OSError."""
        key = (application.id, submission.idempotency_key, submission.digest)
        if submission.idempotency_key and (found := await self._store.read(_retried, *key)):
            return found
        checked = await self._preparation.admit(application, submission.value)
        request_id = str(uuid.uuid4())
        try:
            request = await self._request(request_id, application, checked, submission)
            position = await self._store.run_durably(_insert, request, checked.notes)
        except BaseException as error:
            await self._give_up(request_id)
            is_retry = isinstance(error, StoreConflict) and submission.idempotency_key  # submitted at the same moment
            if is_retry and (found := await self._store.read(_retried, *key)):
                return found
            raise
        self._queued()
        return request, position

    async def _request(
        self, request_id: str, application: Application, checked: CheckedRequest, submission: Submission
    ) -> StoredRequest:
        """The request's row, after its files are kept. Errors: Invalid."""
        arguments, there, origins = dict(checked.arguments), {}, []
        for name, value in checked.files.items():
            arrived = submission.files.get(name)
            if arrived and arrived.text == value:  # a wrong file is reported at once
                there[name] = await self._keep(arrived, name, application, request_id)
                arguments[name] = f"{value[: value.find(',') + 1][:LONGEST_KEPT]}…"
            else:
                with suppress(InputError):  # the fetch will report it
                    origins.append(await self._inbox.origin_of(value, name))
        now, timeout = clock.now(), submission.start_timeout
        return StoredRequest(
            id=request_id,
            app=application.id,
            arguments=arguments,
            media=there,
            ready=there.keys() == checked.files.keys(),
            origin=next(filter(None, origins), None),
            sync_mode=checked.sync_mode,
            digest=submission.digest,
            priority=submission.priority,
            idempotency_key=submission.idempotency_key,
            base_url=submission.base_url,
            webhook_url=submission.webhook_url,
            created=now.wall,
            start_timeout=timeout,
            start_before=None if timeout is None else now.plus(timeout).steady,
            boot=now.boot,
            keep_seconds=submission.keep_seconds,
        )

    async def _keep(self, arrived: ArrivedFile, name: str, application: Application, request_id: str) -> str:
        try:
            if arrived.error:
                raise arrived.error
            kept = await self._inbox.keep(
                arrived.file, "", arrived.uri.content_type, name, application.files[name], request_id
            )
            await asyncio.to_thread(application.check_file, name, self._settings.input / kept)
            return kept
        except InputError as error:
            raise application.invalid_from(error, name) from None

    async def _give_up(self, request_id: str) -> None:
        """Gives up the files of a request that was not submitted. If that cannot be written, they go after an hour."""
        with suppress(StoreFailed):
            await self._store.run(owners.give_up, [request_id], self._settings)


def _insert(session: Session, request: StoredRequest, notes: tuple[str, ...]) -> int:
    rows.add(session, request)
    owners.keep(session, request.id)
    for line in notes:
        rows.add_log(session, request.id, line, request.created, "WARN")
    return rows.position(session, request)


def _retried(session: Session, app: str, key: str, digest: str) -> tuple[StoredRequest, int] | None:
    found = rows.find_retried(session, app, key)
    if found and found.digest != digest:
        raise ReusedKey(key)
    return (found, rows.position(session, found)) if found else None
