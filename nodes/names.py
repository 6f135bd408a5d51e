"""File names: the %…% in a prefix filled in as ComfyUI's editor does for its own nodes, and what no file may be named.

The editor fills a prefix in before it queues a graph (web/names.js asks it to). A graph that comes through the API has
its %…% still, and so has a prefix that comes from another node; they are filled in here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from ..ltx.characters import fault_on_windows
from ..ltx.errors import InputError

PART = 255  # bytes of a file or folder name, on all usual disks
ENDING = "_00001_.webm"  # what is added to the last part, at its longest
TIMES = {"month": "tm_mon", "day": "tm_mday", "hour": "tm_hour", "minute": "tm_min", "second": "tm_sec"}
DATES = {"d": "tm_mday", "M": "tm_mon", "h": "tm_hour", "m": "tm_min", "s": "tm_sec"}
DATE = re.compile(r"dd?|hh?|mm?|ss?|MM?|yyyy|yyy|yy")
SIGNS = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')  # that a widget's value may not bring into a name


def fill_in(prefix: str, width: int, height: int, prompt: Any = None, extra: Any = None) -> str:
    """The prefix with forward slashes and without %…%.

    %date:yyyy-MM-dd% is the time in any format of d, M, y, h, m and s. %Node.widget% is a widget's value; the node is
    named by its "Node name for S&R", which is its type unless a person has changed it, or by its title. prompt, extra:
    the hidden inputs `prompt` and `extra_pnginfo`. %width%, %height%, %year%, %month%, %day%, %hour%, %minute% and
    %second% are ComfyUI's. An unknown name stays as it is.
    """
    now = time.localtime()
    values = {"width": str(width), "height": str(height), "year": f"{now.tm_year}"}
    values |= {name: f"{getattr(now, field):02}" for name, field in TIMES.items()}

    def one(match: re.Match[str]) -> str:
        inside = match[1]
        if inside.startswith("date:"):
            return DATE.sub(lambda each: _date(each[0], now), inside.removeprefix("date:"))
        node, dot, widget = inside.partition(".")
        found = _widget(prompt, extra, node, widget) if dot else values.get(inside)
        return match[0] if found is None else found

    return re.sub(r"%([^%]+)%", one, prefix).replace("\\", "/")


def _date(letters: str, now: time.struct_time) -> str:
    if letters[0] == "y":
        return {2: f"{now.tm_year}"[2:], 4: f"{now.tm_year}"}.get(len(letters), letters)
    return f"{getattr(now, DATES[letters[0]]):0{len(letters)}}"


def _widget(prompt: Any, extra: Any, name: str, widget: str) -> str | None:
    """The value of a widget as JavaScript writes it, None if there is no such node or widget."""
    nodes = prompt if isinstance(prompt, Mapping) else {}
    chosen = {node_id for node_id, named in _search_names(extra).items() if named == name}
    ways = (
        lambda node_id, node: node_id.rpartition(":")[2] in chosen,  # 3:12 is node 12 in the subgraph 3
        lambda node_id, node: node.get("class_type") == name,
        lambda node_id, node: node.get("_meta", {}).get("title") == name,
    )
    for way in ways:
        for node_id, node in nodes.items():
            value = node.get("inputs", {}).get(widget)
            if way(str(node_id), node) and not isinstance(value, (list, dict)) and widget in node["inputs"]:
                return SIGNS.sub("_", _as_text(value))
    return None


def _search_names(extra: Any) -> dict[str, str]:
    """The "Node name for S&R" of each node of a workflow, by id, also of the nodes in its subgraphs."""
    workflow = extra.get("workflow") if isinstance(extra, Mapping) else None
    if not isinstance(workflow, Mapping):
        return {}
    inner = (workflow.get("definitions") or {}).get("subgraphs") or []
    nodes = [node for graph in (workflow, *inner) for node in graph.get("nodes") or []]
    return {str(node.get("id")): (node.get("properties") or {}).get("Node name for S&R", "") for node in nodes}


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def check_name(prefix: str) -> None:
    """Raises InputError if a prefix that is filled in, or a part of it, can be no file or folder name on some system.

    The rules are the same everywhere, because a graph and its files go from one system to another.
    """
    shown = repr(prefix if len(prefix) <= 60 else f"{prefix[:57]}…")
    parts = [part for part in prefix.split("/") if part not in ("", ".", "..")]
    for part in parts:
        if fault := fault_on_windows(part):
            raise InputError(f"filename_prefix: {shown} {fault}.")
        try:
            length = len(part.encode()) + (len(ENDING) if part is parts[-1] else 0)
        except UnicodeEncodeError as error:
            raise InputError(f"filename_prefix: {shown} has half a character; type it again.") from error
        if length > PART:
            raise InputError(f"filename_prefix: {shown} has {len(part)} characters in one name; use at most 100.")
