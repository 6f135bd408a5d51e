"""Films that several machines make together: the parts that wait, and what becomes of them.

A lane that has a film in hand offers its parts here, and works on them itself. Lanes that are free take parts before
they claim requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..graph.compose import SAVE_PART
from ..graph.graph import Graph, Prompt
from ..host import Host, HostLost, OnEvent, Outcome
from .endings import ATTEMPTS, lost, stopped_in_comfyui, without_outputs


class Helper(Protocol):
    """A lane, as a crew knows it."""

    @property
    def is_there(self) -> bool:
        """Whether its ComfyUI can run something, now or when it is free."""

    def wake(self) -> None:
        """Lets it look for work."""


@dataclass(eq=False)
class PartRun:
    """A part of a film. prompt: its graph; say: writes a line with its level into the request's log; happened: hears
    the events of its run; judge: turns the error of an outcome, or of ComfyUI's validation, into the request's end."""

    prompt: Prompt
    say: Callable[[str, str], None]
    happened: OnEvent
    judge: Callable[[Exception | Outcome, Prompt], Exception]
    file: str = ""  # its name, once it is made
    begun: bool = False
    attempts: int = 0  # runs after which its machine was lost
    task: asyncio.Task[None] | None = None


class Film:
    """The parts of one film, until all are made or one of them has failed."""

    def __init__(self, parts: Sequence[PartRun], wake: Callable[[], None]) -> None:
        self.parts, self._wake = parts, wake
        self._open = [part for part in parts if not part.file]
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        return self._error is not None or all(part.file for part in self.parts)

    def take(self) -> PartRun | None:
        """The next part that nobody works on."""
        return self._open.pop(0) if self._open and not self.is_over else None

    async def wait(self) -> None:
        """Waits until a part is made, or is to be made anew."""
        self._changed.clear()
        await self._changed.wait()

    def check(self) -> None:
        """Raises the error of the part that has failed, if one has."""
        if self._error is not None:
            raise self._error

    async def work(self, part: PartRun, host: Host, name: str | None) -> None:
        """Runs a part on a ComfyUI. name: of the worker, None for this server. Errors: HostLost; another one has the
        part then."""
        part.begun, part.task = False, asyncio.current_task()
        queued: list[str] = []
        if name:
            part.say(f"sent to {name}", "INFO")
        try:
            outcome = await host.run(part.prompt, queued.append, part.happened)
        except HostLost as error:
            part.attempts += part.begun
            part.say(f"{name} did not finish it, another one will: {error}", "WARN")
            if part.attempts >= ATTEMPTS:
                self._fail(lost())
            self._open.append(part)  # to the end: it may have killed the machine
            self._wake()
            raise
        except asyncio.CancelledError:
            self._open.insert(0, part)
            self._wake()
            raise
        except Exception as error:
            self._fail(part.judge(error, part.prompt))
        else:
            self._end(part, outcome)
        finally:
            part.task = None
            self._changed.set()
            for prompt_id in queued:
                host.forget(prompt_id)

    def _fail(self, error: Exception) -> None:
        """Ends the film, and the work on its other parts."""
        self._error = self._error or error
        for task in self.tasks():
            task.cancel()

    def tasks(self) -> list[asyncio.Task[None]]:
        """The work on its parts, other than the present task's."""
        found = [part.task for part in self.parts if part.task]
        return [task for task in found if task is not asyncio.current_task()]

    def _end(self, part: PartRun, outcome: Outcome) -> None:
        found = outcome.outputs.get(Graph(part.prompt).find(SAVE_PART), {}).get("report")
        if outcome.error:
            self._fail(part.judge(outcome, part.prompt))
        elif outcome.interrupted or outcome.removed:
            self._fail(stopped_in_comfyui())
        elif not found:
            self._fail(without_outputs())
        else:
            part.file = found[0]["filename"]
            part.say("made", "INFO")


class Crew:
    """The lanes of one server, and the films that they make together. home: the server's own ComfyUI, which joins."""

    def __init__(self, home: Host) -> None:
        self.home = home
        self._helpers: list[Helper] = []
        self._films: list[Film] = []

    def add(self, helper: Helper) -> None:
        self._helpers.append(helper)

    def remove(self, helper: Helper) -> None:
        if helper in self._helpers:
            self._helpers.remove(helper)

    @property
    def size(self) -> int:
        """How many lanes can work, now or when they are free."""
        return sum(helper.is_there for helper in self._helpers)

    def open(self, parts: Sequence[PartRun]) -> Film:
        """Offers the parts of a film to all lanes. `close` it in the end."""
        film = Film(parts, self._wake)
        self._films.append(film)
        self._wake()
        return film

    async def close(self, film: Film) -> None:
        """Stops what is still worked on."""
        self._films.remove(film)
        tasks = film.tasks()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def take(self) -> tuple[Film, PartRun] | None:
        """The next part of any film."""
        return next(((film, part) for film in self._films if (part := film.take())), None)

    def _wake(self) -> None:
        for helper in self._helpers:
            helper.wake()
