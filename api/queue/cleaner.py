"""Deletes old results with the media that they were made from, then old requests, useless uploads, and what killed
servers left. It works in small steps, beside everything else."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from ..database import rows
from ..database.rows import StoredRequest
from ..database.store import Store
from ..files import film_parts, owners, uploads
from ..files.incoming import in_thread
from ..files.results import result_file
from ..settings import Settings
from ..ticking import Ticker, each_of
from ..webhooks import deliveries

CLEAN_SECONDS = 60.0
SWEEP_SECONDS = 3600.0  # between sweeps; younger files are not deleted
STEP = 100  # rows of a transaction, which keeps other writers waiting for some milliseconds


class Cleaner:
    """Call `start` and `stop` on the loop that answers requests."""

    def __init__(self, database: Store, settings: Settings) -> None:
        self._store, self._settings = database, settings
        self._ticker = Ticker("cleaning up", self.clean, CLEAN_SECONDS)
        self._swept = -SWEEP_SECONDS
        self._is_log_full = False  # whether SQLite's shared log still has deleted words

    def start(self) -> None:
        self._ticker.start()

    async def stop(self) -> None:
        await self._ticker.stop()

    async def clean(self) -> None:
        # requests go before files are deleted, so that clients can read for a while that a result is gone
        await each_of(
            (
                self._forget,
                self._drop_inline,
                self._empty_log,
                self._drop_short_lived,
                self._drop_old,
                self._give_up_reserved,
                self._purge,
            )
        )

    async def _repeat(self, work: Callable[..., Any], *args: Any) -> None:
        """Repeats a transaction until it finds nothing more to do."""
        while await self._store.run(work, *args):
            await asyncio.sleep(0)

    async def _forget(self) -> None:
        if seconds := self._settings.forget_seconds:
            await self._repeat(_forget, time.time() - seconds)

    async def _drop_inline(self) -> None:
        while await self._store.run(_drop_inline, time.time(), self._settings):
            self._is_log_full = True
            await asyncio.sleep(0)

    async def _empty_log(self) -> None:
        if self._is_log_full and await in_thread(self._store.empty_log):
            self._is_log_full = False

    async def _drop_short_lived(self) -> None:
        await self._repeat(_drop_short_lived, time.time(), self._settings)

    async def _drop_old(self) -> None:
        after: rows.Ended | None = rows.FIRST_ENDED
        if seconds := self._settings.expire_seconds:
            while after := await self._store.run(_drop_old, time.time() - seconds, after, self._settings):
                await asyncio.sleep(0)

    async def _give_up_reserved(self) -> None:
        await self._repeat(owners.give_up_reserved, time.time(), STEP, self._settings)

    async def _purge(self) -> None:
        await self._repeat(uploads.purge, time.time(), STEP, self._settings)
        if time.monotonic() > self._swept + SWEEP_SECONDS:
            self._swept = time.monotonic()
            await self._sweep(time.time() - SWEEP_SECONDS)

    async def _sweep(self, before: float) -> None:
        """Deletes unfinished files of killed servers, uploaded files without a row, which older versions left, and old
        parts of films.

        In the input folder it deletes only files that rows name: servers with other databases may share that folder.
        """
        folder = uploads.folder(self._settings)
        for receiving in (self._settings.input_folder, self._settings.output_folder, folder):
            await in_thread(_remove_parts, receiving, before)
        names = await in_thread(_names, folder, uploads.OURS, before)
        for start in range(0, len(names), STEP):
            await self._store.run(uploads.sweep, names[start : start + STEP], self._settings)
        await in_thread(film_parts.sweep, self._settings)


def _drop_inline(session: Session, now: float, settings: Settings) -> int:
    """Deletes the file and the words of results that are sent once and whose time is over. Returns their number."""
    unread, read = now - settings.inline_unread_seconds, now - settings.inline_read_seconds
    dropped = _drop_files(session, rows.inline(session, unread, read, STEP), settings)
    rows.forget_words(session, dropped)
    deliveries.forget(session, dropped)
    return len(dropped)


def _drop_short_lived(session: Session, now: float, settings: Settings) -> int:
    """Deletes the files of requests whose clients wish so. Returns the number of these requests."""
    dropped = _drop_files(session, rows.short_lived(session, now, STEP), settings)
    rows.mark_gone(session, dropped)
    return len(dropped)


def _drop_old(session: Session, ended_before: float, after: rows.Ended, settings: Settings) -> rows.Ended | None:
    """Deletes the files of old requests. Returns the last of these requests; None if there are no more."""
    old = rows.with_files(session, ended_before, after, STEP)
    rows.mark_gone(session, _drop_files(session, old, settings))
    return (old[-1].ended, old[-1].number) if old else None


def _drop_files(session: Session, requests: list[StoredRequest], settings: Settings) -> list[str]:
    """Deletes the files of requests. Returns the ids of those whose result is gone."""
    owners.give_up(session, [request.id for request in requests], settings)
    return [each.id for each in requests if not each.result or owners.remove(result_file(each, settings))]


def _forget(session: Session, ended_before: float) -> int:
    forgotten = rows.forget(session, ended_before, STEP)
    deliveries.forget(session, forgotten)
    return len(forgotten)


def _remove_parts(folder: Path, before: float) -> None:
    for path in folder.glob(".*.part"):
        if _is_older(path, before):
            owners.remove(path)


def _names(folder: Path, ours: re.Pattern[str], before: float) -> list[str]:
    return [path.name for path in folder.glob("*") if ours.fullmatch(path.name) and _is_older(path, before)]


def _is_older(path: Path, before: float) -> bool:
    try:
        return path.stat().st_mtime < before
    except OSError:  # another server has deleted it
        return False
