"""Telling a client's server that its request has ended: signed, repeated until it is heard, over restarts.

A delivery is a row, written together with the request's end: what to say, and when to try next. The URL's address is
judged again at every try (addresses.py), and redirects are not followed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import os
import secrets
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Text, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from ...ltx.errors import InputError
from ..database.store import Base, Store
from ..network import addresses
from ..network.fetching import request as exchange
from ..settings import Settings
from ..waiting import is_set_within

FIELD = "fal_webhook"
JWKS = "/rest/.well-known/jwks.json"
TRIES = 10
FIRST_WAIT, LONGEST_WAIT = 15.0, 1800.0
"""Seconds until the second try; each wait is twice the last. The tenth try is an hour and a half after the first."""
AT_ONCE = 8
CLAIM_SECONDS = 60.0  # after which another server, or this one restarted, takes a try up again
RESOLVE_SECONDS = 2.0
IDLE_SECONDS = 5.0  # between looks into the database, where another server may have put a row

PENDING, DELIVERED, FAILED = "PENDING", "DELIVERED", "FAILED"

log = logging.getLogger(__name__)


class Delivery(Base):
    """One request's webhook."""

    __tablename__ = "webhook_deliveries"

    request_id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    body: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(default=PENDING, index=True)
    tries: Mapped[int] = mapped_column(default=0)
    due: Mapped[float]
    last_error: Mapped[str | None] = mapped_column(Text)


class Signer:
    """An ED25519 key of this installation's own, made at first use; the file is its owner's alone."""

    def __init__(self, settings: Settings) -> None:
        self._key = _load_key(settings.system / "webhook_key.pem")
        public = self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self._x = _base64url(public)
        # RFC 7638 and RFC 8037: the key's own name, the same for everyone
        thumbprint = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": self._x}, separators=(",", ":"))
        self.key_id = _base64url(hashlib.sha256(thumbprint.encode()).digest())

    @property
    def jwks(self) -> dict[str, Any]:
        """RFC 7517, as whoever checks a signature reads it."""
        key = {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.key_id, "x": self._x}
        return {"keys": [key]}

    def headers(self, request_id: str, body: bytes, now: float) -> dict[str, str]:
        """The four `X-Fal-Webhook-…` headers of that body; now: seconds since 1970."""
        timestamp = str(int(now))
        message = "\n".join((request_id, self.key_id, timestamp, hashlib.sha256(body).hexdigest()))
        return {
            "X-Fal-Webhook-Request-Id": request_id,
            "X-Fal-Webhook-User-Id": self.key_id,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": self._key.sign(message.encode("utf-8")).hex(),
        }


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _load_key(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        made = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        part = path.with_name(f".{secrets.token_hex(16)}.part")
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(made)
        try:
            os.link(part, path)  # a second server that starts now must not replace the first one's key
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(part, path)
        part.unlink(missing_ok=True)
    path.chmod(0o600)
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path.name}: is no ED25519 key; delete the file, and a new one is made.")
    return key


async def check(url: str, settings: Settings) -> None:
    """Of a webhook's URL when a request is submitted. Errors: `InputError` for one that will never be called.

    A name that does not resolve now may do so later: that is left to the deliveries.
    """
    with contextlib.suppress(addresses.UnresolvedError):
        await addresses.judge(addresses.parse(url, FIELD), FIELD, settings.allowed_hosts, RESOLVE_SECONDS)


class Webhooks:
    """The deliveries. `start` once the event loop runs; `enqueue_in` and `wake` when a request has ended."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.signer = Signer(settings)
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._trying: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Takes up what is due, that of an earlier run included."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """What was not delivered stays for the next run."""
        tasks = [*self._trying, *([self._loop] if self._loop else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def enqueue_in(self, session: Session, request_id: str, url: str, body: dict[str, Any]) -> None:
        """A delivery, in the transaction that ends the request. Once per request: a second call changes nothing."""
        if session.get(Delivery, request_id) is None:
            session.add(Delivery(request_id=request_id, url=url, body=body, due=time.time()))

    def wake(self) -> None:
        """That transaction is through. Without this call the delivery waits for the next look, some seconds."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                for row in await self.store.run(_claim, time.time(), AT_ONCE - len(self._trying)):
                    task = asyncio.create_task(self._try(*row))
                    self._trying.add(task)
                    task.add_done_callback(self._done)
                wait = IDLE_SECONDS if len(self._trying) == AT_ONCE else await self.store.run(_next_wait, time.time())
            except Exception:  # the database may be busy; deliveries must not end with one bad look at it
                log.exception("webhooks: a look at the deliveries failed; the next is in %s s", IDLE_SECONDS)
                wait = IDLE_SECONDS
            await is_set_within(self._wake, wait)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._trying.discard(task)
        self._wake.set()
        if not task.cancelled() and task.exception():
            log.error("webhooks: a try failed", exc_info=task.exception())

    async def _try(self, request_id: str, url: str, body: dict[str, Any], tries: int) -> None:
        try:
            error = await self._send(request_id, url, body)
        except InputError as refused:
            error = str(refused)
        except Exception as broken:  # whatever it was: the next try comes in its time, and the last one is the last
            log.exception("webhooks: request %s", request_id)
            error = type(broken).__name__
        if error is None:
            await self.store.run_durably(_settle, request_id, DELIVERED, time.time(), None)
        elif tries + 1 >= TRIES:
            log.warning("webhooks: request %s is given up: %s", request_id, error)
            await self.store.run(_settle, request_id, FAILED, time.time(), error)
        else:
            due = time.time() + min(FIRST_WAIT * 2**tries, LONGEST_WAIT)
            await self.store.run(_settle, request_id, PENDING, due, error)

    async def _send(self, request_id: str, url: str, said: dict[str, Any]) -> str | None:
        """One try: None, or why it failed."""
        body = json.dumps(said).encode("utf-8")
        headers = {"Content-Type": "application/json", "User-Agent": "ltx-audio-to-video"}
        headers |= self.signer.headers(request_id, body, time.time())
        target = addresses.parse(url, FIELD)
        hosts, seconds = self.settings.allowed_hosts, self.settings.webhook_seconds
        async with exchange("POST", target, FIELD, hosts, seconds, data=body, headers=headers) as response:
            return None if 200 <= response.status < 300 else f"{target.raw_host} answered {response.status}"


def _claim(session: Session, now: float, most: int) -> list[tuple[str, str, dict[str, Any], int]]:
    """Deliveries that are due (id, URL, body, tries so far), now this server's for `CLAIM_SECONDS`."""
    columns = (Delivery.request_id, Delivery.url, Delivery.body, Delivery.tries)
    due = select(*columns).where(Delivery.state == PENDING, Delivery.due <= now).order_by(Delivery.due).limit(most)
    mine = []
    for request_id, url, body, tries in session.execute(due).all():
        found = Delivery.request_id == request_id, Delivery.state == PENDING, Delivery.due <= now
        if session.execute(update(Delivery).where(*found).values(due=now + CLAIM_SECONDS, tries=tries + 1)).rowcount:
            mine.append((request_id, url, body, tries))
    return mine


def _next_wait(session: Session, now: float) -> float:
    due = session.scalar(select(Delivery.due).where(Delivery.state == PENDING).order_by(Delivery.due).limit(1))
    return IDLE_SECONDS if due is None else min(max(due - now, 0.05), IDLE_SECONDS)


def _settle(session: Session, request_id: str, state: str, due: float, error: str | None) -> None:
    values = {"state": state, "due": due, "last_error": error}
    session.execute(update(Delivery).where(Delivery.request_id == request_id).values(**values))
