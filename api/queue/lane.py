"""A lane: one ComfyUI that runs one request at a time, from its claim to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from .. import clock
from ..database.rows import StoredRequest, is_late
from ..database.store import Store, StoreFailed
from ..faults import public
from ..host import Host, HostLost
from ..settings import Settings
from .crew import Crew, Film, PartRun
from .endings import LeaseLost, RequestFailed, cancelled, late
from .finishing import Finishing
from .in_hand import InHand
from .journal import Journal
from .leases import Leases
from .runner import Runner


class Lane:
    """name: of the ComfyUI, if it is another machine's. wake: lets the lane look for work. on_end: is called at each
    run's end with None, or with the reason why the ComfyUI was lost, and whether the run had begun. is_there: whether
    the ComfyUI can run something, now or when it is free."""

    def __init__(
        self,
        host: Host,
        database: Store,
        settings: Settings,
        journal: Journal,
        finishing: Finishing,
        wake: Callable[[], None],
        crew: Crew,
        *,
        name: str | None = None,
        on_end: Callable[[str | None, bool], None] = lambda reason, started: None,
        is_there: Callable[[], bool] = lambda: True,
    ) -> None:
        self._journal, self._finishing, self.wake, self._crew = journal, finishing, wake, crew
        self._host, self._name, self._on_end, self._is_there = host, name, on_end, is_there
        self.leases = Leases(database, settings)
        self._runner = Runner(host, self.leases, journal, finishing, settings, crew, name, on_end)
        self._hand: InHand[dict[str, Any]] | None = None
        self._help: asyncio.Task[None] | None = None
        crew.add(self)

    @property
    def is_busy(self) -> bool:
        return self._hand is not None or self._help is not None

    @property
    def is_there(self) -> bool:
        return self._is_there()

    async def close(self) -> None:
        """Ends the work. A running request goes back into the queue, and a part of a film to other lanes."""
        self._crew.remove(self)
        if self._help:
            self._help.cancel()
            await asyncio.wait({self._help})
        if self._hand:
            await self._hand.close()

    async def tick(self) -> None:
        """Takes a part of a film that another lane has in hand, or else claims the next request; or stops the running
        one if its client has cancelled it or it begins too late."""
        if hand := self._hand:
            if not self._runner.started and is_late(hand.request, clock.now()):
                hand.stop(late(hand.request))
            elif hand.request.id in await self.leases.marked():
                hand.stop(cancelled())
        elif self._help:
            return
        elif found := self._crew.take():
            self._help = asyncio.create_task(self._assist(*found))
        elif request := await self.leases.claim():
            self._hand = InHand(request, self.leases, self._finishing, self._run, self._settle, self._over)

    def stop(self, request_id: str, ending: RequestFailed) -> None:
        """Stops the run if it is that request's. Its end is written soon after."""
        if self._hand and self._hand.request.id == request_id:
            self._hand.stop(ending)

    async def _assist(self, film: Film, part: PartRun) -> None:
        """Works on a part of another lane's film."""
        try:
            await film.work(part, self._host, self._name)
        except HostLost as error:
            logging.warning("LTX A2V: %s did not finish a part of a film: %s", self._name, public(str(error)))
            self._on_end(str(error), part.begun)
        else:
            self._on_end(None, True)
        finally:
            self._help = None
            self.wake()

    def _over(self) -> None:
        self._hand = None
        self.wake()

    async def _run(self, request: StoredRequest) -> dict[str, Any]:
        """Runs a request and returns the columns of its result. Errors: RequestFailed; LeaseLost if it goes back into
        the queue."""
        if self._name:
            self._journal.log(request.id, f"Sent to {self._name}")
        try:
            result = await self._runner.run(request)
        except StoreFailed:  # not the request's fault
            raise LeaseLost from None
        except HostLost as error:
            await self._give_up(request, str(error))
            raise LeaseLost from None
        self._on_end(None, True)
        return result

    async def _settle(self, request: StoredRequest, outcome: dict[str, Any] | RequestFailed) -> None:
        """Writes a request's end, and removes what it left if it has no result."""
        await self._finishing.finish_patiently(request, outcome)
        if isinstance(outcome, RequestFailed):
            await self._runner.clear(request)

    async def _give_up(self, request: StoredRequest, reason: str) -> None:
        """Returns the request to the queue because its ComfyUI is lost. This counts as an attempt if the run had
        begun."""
        told = public(reason)
        logging.warning("LTX A2V: %s did not finish request %s, another one will: %s", self._name, request.id, told)
        self._on_end(reason, self._runner.started)
        self._journal.log(request.id, f"{self._name} did not finish it, another one will: {reason}", "WARN")
        await self.leases.give_back_one(request.id, counts=self._runner.started)
