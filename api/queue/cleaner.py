"""What does not stay: results past their time, with the files that they were made from, and uploads nobody can use."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ..database import rows
from ..database.store import Store
from ..files import uploads
from ..files.results import inline_gone, result_file
from ..settings import Settings

CLEAN_SECONDS = 60.0


class Cleaner:
    """`start` and `stop` on the loop that answers requests."""

    def __init__(self, database: Store, settings: Settings) -> None:
        self._store, self._settings = database, settings
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                await self._store.run(_drop_old, self._settings, time.time())
                await uploads.purge(self._settings, self._store)
            except (SQLAlchemyError, OSError) as error:
                logging.warning("LTX A2V: old results could not be removed: %s", error)
            await asyncio.sleep(CLEAN_SECONDS)


def _drop_old(session: Session, settings: Settings, now: float) -> None:
    """Deletes the files of results whose time is over, and what they were made from; only what the API put there."""
    for request in rows.with_files(session):
        inline = request.sync_mode and inline_gone(request.ended or now, request.read, now, settings)
        old = settings.expire_hours and now >= (request.ended or now) + settings.expire_hours * 3600
        if inline or old:
            result_file(request, settings).unlink(missing_ok=True)
            request.gone = True
    if settings.expire_hours:
        session.flush()
        for name in rows.unused_media(session):
            path = settings.input / name
            if path.parent == settings.input_folder:
                path.unlink(missing_ok=True)
