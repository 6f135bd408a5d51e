"""Turns the graph of a film into those of its parts, for several machines, and into the one that joins them.

A part ends at hard cuts of the timeline, so it depends on nothing outside it, and the film is the same however it is
divided.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple
from itertools import accumulate
from typing import Any

from ...ltx.request import Request
from ...ltx.timeline import Section, streams
from .compose import AUDIO, FILM_PART, SAVE, SAVE_PART, TIMELINE, WINDOW
from .graph import Graph, Prompt, sources


def possible_parts(request: Request) -> int:
    """The number of parts that a request's film can have: one more than it has hard cuts; 1 for a clip."""
    return 1 + sum(section.cut for section in request.sections[1:])


def part_of(prompt: Prompt, number: int, count: int, sections: Sequence[Section] = ()) -> tuple[Prompt, str]:
    """The graph that makes and saves one part of a film, from 1, and the name that its file begins with. sections: of
    the film's timeline.

    The name is a hash of all that goes into the part, so that a part that was made is found again, also for a film
    whose other parts have other prompts or seeds.
    """
    graph = Graph(prompt)
    _insert(graph, number, count, "")
    sampler = graph.prompt[graph.find(SAVE)]["inputs"]["latent"][0]
    outputs = {name: [sampler, slot] for slot, name in enumerate(("latent", "noise", "audio"))}
    saver = graph.add(SAVE_PART, "Save Film Part", **outputs)
    needed, waiting = {saver}, [saver]
    while waiting:
        found = sources(graph.prompt, waiting.pop()) - needed
        needed |= found
        waiting += found
    part = {key: graph.prompt[key] for key in sorted(needed)}
    told = [_without_timeline(part), _of_timeline(sections, number, count)]
    return part, hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _without_timeline(part: Prompt) -> Prompt:
    """The graph without the words of all sections."""
    graph = Graph(part)
    for key in graph.all(TIMELINE):
        for name in ("timeline", "prompt"):
            graph.prompt[key]["inputs"].pop(name)
    return graph.prompt


def _of_timeline(sections: Sequence[Section], number: int, count: int) -> list[Any]:
    """What a part depends on: where all sections begin and which streams of noise they draw from, and all that its own
    say. Where a part has several stretches between cuts, the sound's length decides which, so that all count as its
    own."""
    cuts = [place == 0 or section.cut for place, section in enumerate(sections)]
    stretches = list(accumulate(map(int, cuts)))
    apart = sum(cuts) == count
    own = [
        [place, *map(str, astuple(section))]
        for place, (section, stretch) in enumerate(zip(sections, stretches, strict=True))
        if stretch == number or not apart
    ]
    return [[[str(section.start), section.name, section.cut] for section in sections], streams(sections, 0)[0], own]


def save_as(part: Prompt, prefix: str) -> Prompt:
    """The graph of a part whose file begins with that name in the output folder."""
    graph = Graph(part)
    graph.inputs(SAVE_PART)["filename_prefix"] = prefix
    return graph.prompt


def joined(prompt: Prompt, names: list[str]) -> Prompt:
    """The graph of a film whose parts are made. names: of their files in the output folder."""
    graph = Graph(prompt)
    _insert(graph, 0, max(len(names), 1), "\n".join(names))
    return graph.prompt


def prefix_of(prompt: Prompt) -> str:
    """The prefix of the file that a graph saves, a film or a part of one."""
    graph = Graph(prompt)
    return graph.inputs(SAVE if graph.has(SAVE) else SAVE_PART)["filename_prefix"]


def _insert(graph: Graph, number: int, count: int, made: str) -> None:
    film = [graph.find(WINDOW), 0]
    key = graph.add(FILM_PART, "Film Part", film=film, part=number, parts=count, made=made)
    graph.inputs(AUDIO)["windows"] = [key, 0]
