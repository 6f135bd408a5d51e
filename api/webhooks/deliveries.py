"""Webhooks: they tell a client's server that its request has ended. They are signed, and repeated until it answers.

A delivery is a row, written in the transaction that ends the request. It holds the message and the time of the next
try, so a restart loses nothing. Each try judges the URL's address again (network/addresses.py) and follows no
redirects. The tries at once are limited for each receiver, so a receiver that hangs holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Collection
from typing import Any

from sqlalchemy import Index, Text, delete, func, literal, or_, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from ...ltx.errors import InputError
from ..database.store import Base, Store
from ..faults import log_unexpected, public
from ..network import addresses
from ..network.fetching import request as exchange
from ..settings import Settings
from ..ticking import Ticker
from .signing import Signer

FIELD = "fal_webhook"
JWKS = "/rest/.well-known/jwks.json"
TRIES = 10
FIRST_WAIT, LONGEST_WAIT = 15.0, 1800.0
"""Seconds until the second try. Each wait is twice the last. The tenth try is an hour and a half after the first."""
AT_ONCE, OF_A_HOST = 256, 64
CLAIM_SECONDS = 60.0  # after which another server or a restarted one may repeat the try
RESOLVE_SECONDS = 2.0
IDLE_SECONDS = 5.0  # between looks into the database for rows of other servers

PENDING, DELIVERED, FAILED = "PENDING", "DELIVERED", "FAILED"


class Delivery(Base):
    """One request's webhook. body: emptied once it is delivered or given up."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index("webhook_deliveries_due", "state", "due"),)

    request_id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    host: Mapped[str] = mapped_column(default="", server_default="")  # with its port
    body: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(default=PENDING)
    tries: Mapped[int] = mapped_column(default=0)
    due: Mapped[float]
    last_error: Mapped[str | None] = mapped_column(Text)


class WebhooksOff(Exception):
    """The reason why this server sends no webhooks at the moment, in one sentence."""


class Webhooks:
    """All deliveries. Call `start` on the running event loop; `enqueue_in` and `wake` when a request has ended."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self._signer: Signer | None = None
        self._ticker = Ticker("the delivery of webhooks", self._take, IDLE_SECONDS)
        self._trying: dict[asyncio.Task[None], str] = {}  # try → the receiver's host
        self._off = ""  # the logged reason why no webhooks are sent

    def signer(self) -> Signer:
        """Loads the key at first use. Errors: WebhooksOff if that is impossible."""
        if self._signer is None:
            try:
                self._signer = Signer(self.settings)
            except InputError as error:
                if str(error) != self._off:
                    self._off = str(error)
                    logging.error("LTX A2V: no webhooks are sent: %s", error)
                raise WebhooksOff(public(str(error))) from None
        return self._signer

    async def check(self, url: str) -> None:
        """Checks a webhook's URL when a request is submitted. Errors: `InputError` for one that will never be called;
        WebhooksOff.

        A name without an address may have one later, so the deliveries decide about it.
        """
        with contextlib.suppress(addresses.UnresolvedError):
            parsed = addresses.parse(url, FIELD)
            await addresses.judge(parsed, FIELD, self.settings.allowed_hosts, RESOLVE_SECONDS)
        self.signer()

    def start(self) -> None:
        """Begins to deliver, including what earlier runs left."""
        self._ticker.start()

    async def stop(self) -> None:
        """Stops. The next run delivers the rest."""
        await self._ticker.stop()
        for task in self._trying:
            task.cancel()
        await asyncio.gather(*self._trying, return_exceptions=True)

    def enqueue_in(self, session: Session, request_id: str, url: str, body: dict[str, Any]) -> None:
        """Adds a delivery in the transaction that ends the request. A second call for a request changes nothing."""
        if session.get(Delivery, request_id) is None:
            session.add(Delivery(request_id=request_id, url=url, host=_host(url), body=body, due=time.time()))

    def wake(self) -> None:
        """Says that this transaction is committed. Without this call the delivery waits for the next look, some
        seconds."""
        self._ticker.wake()

    async def _take(self) -> float | None:
        """Begins the tries that are due. Returns the seconds until the next ones, as far as they are known."""
        try:
            self.signer()
        except WebhooksOff:  # it has been logged
            return None
        hosts = Counter(self._trying.values())
        busy = [host for host, count in hosts.items() if count >= OF_A_HOST]
        for row in await self.store.run(_claim, AT_ONCE - len(self._trying), busy):
            request_id, url, body, tries, host = row
            if hosts[host] >= OF_A_HOST:  # this host is at its limit
                await self.store.run(_put_back, request_id)
                continue
            hosts[host] += 1
            task = asyncio.create_task(self._try(request_id, url, body, tries))
            self._trying[task] = host
            task.add_done_callback(self._done)
        if len(self._trying) >= AT_ONCE:
            return None
        busy = [host for host, count in hosts.items() if count >= OF_A_HOST]
        return await self.store.read(_next_wait, time.time(), busy)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._trying.pop(task, None)
        self._ticker.wake()
        if not task.cancelled() and (error := task.exception()):
            log_unexpected("a webhook's try failed", error)

    async def _try(self, request_id: str, url: str, body: dict[str, Any], tries: int) -> None:
        try:
            error = await self._send(request_id, url, body)
        except InputError as refused:
            error = str(refused)
        except Exception as broken:  # any error counts as a failed try
            log_unexpected(f"the webhook of request {request_id}", broken)
            error = type(broken).__name__
        if error is None:
            await self.store.run_patiently(_settle, request_id, DELIVERED, time.time(), None)
        elif tries + 1 >= TRIES:
            logging.warning("LTX A2V: the webhook of request %s is given up: %s", request_id, error)
            await self.store.run_patiently(_settle, request_id, FAILED, time.time(), error)
        else:
            due = time.time() + min(FIRST_WAIT * 2**tries, LONGEST_WAIT)
            await self.store.run_patiently(_settle, request_id, PENDING, due, error)

    async def _send(self, request_id: str, url: str, said: dict[str, Any]) -> str | None:
        """Makes one try. Returns None, or why it failed."""
        body = json.dumps(said).encode("utf-8")
        headers = {"Content-Type": "application/json", "User-Agent": "ltx-audio-to-video"}
        headers |= self.signer().headers(request_id, body, time.time())
        target = addresses.parse(url, FIELD)
        hosts, seconds = self.settings.allowed_hosts, self.settings.webhook_seconds
        async with exchange("POST", target, FIELD, hosts, seconds, data=body, headers=headers) as response:
            return None if 200 <= response.status < 300 else f"{target.raw_host} answered {response.status}"


def _host(url: str) -> str:
    try:
        parsed = addresses.parse(url, FIELD)
    except InputError:  # the first try reports it
        return ""
    return f"{parsed.raw_host}:{parsed.port}".lower()


def _due(now: float, busy: Collection[str]) -> Any:
    """Whether it is time for a try. A time further ahead than any that is set after so many tries is one of another
    clock, or of this one before it was set back, and counts as due."""
    longest = func.max(CLAIM_SECONDS, func.min(FIRST_WAIT * literal(1).bitwise_lshift(Delivery.tries), LONGEST_WAIT))
    past = or_(Delivery.due <= now, Delivery.due > now + longest)
    return (Delivery.state == PENDING) & past & Delivery.host.not_in(busy)


def _claim(session: Session, most: int, busy: Collection[str]) -> list[tuple[str, str, dict[str, Any], int, str]]:
    """Claims deliveries that are due (id, URL, body, tries so far, host) for `CLAIM_SECONDS`. First tries come first: a
    receiver that has failed lately holds up nobody."""
    now = time.time()  # within the transaction, which may have waited for another server's
    columns = (Delivery.request_id, Delivery.url, Delivery.body, Delivery.tries, Delivery.host)
    due = select(*columns).where(_due(now, busy)).order_by(Delivery.tries > 0, Delivery.due).limit(most)
    found = [tuple(row) for row in session.execute(due).all()]
    for request_id, _, _, tries, _ in found:
        mine = update(Delivery).where(Delivery.request_id == request_id)
        session.execute(mine.values(due=now + CLAIM_SECONDS, tries=tries + 1))
    return found


def _put_back(session: Session, request_id: str) -> None:
    mine = update(Delivery).where(Delivery.request_id == request_id)
    session.execute(mine.values(due=time.time(), tries=Delivery.tries - 1))


def _next_wait(session: Session, now: float, busy: Collection[str]) -> float:
    waiting = (Delivery.state == PENDING, Delivery.host.not_in(busy))
    due = session.scalar(select(Delivery.due).where(*waiting).order_by(Delivery.due).limit(1))
    return IDLE_SECONDS if due is None else min(max(due - now, 0.05), IDLE_SECONDS)


def _settle(session: Session, request_id: str, state: str, due: float, error: str | None) -> None:
    values: dict[str, Any] = {"state": state, "due": due, "last_error": error}
    if state != PENDING:
        values["body"] = {}
    session.execute(update(Delivery).where(Delivery.request_id == request_id).values(**values))


def forget(session: Session, request_ids: Collection[str]) -> None:
    """Deletes the deliveries of these requests."""
    session.execute(delete(Delivery).where(Delivery.request_id.in_(request_ids)))
