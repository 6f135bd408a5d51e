"""Where nodes and links of a graph lie: columns from left to right, and lanes above the nodes for links that pass them.

A link that would run behind a node gets a corner before the node it ends at, and one behind the node it starts from
where that is needed, too; every other link is straight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

IN, OUT = -10, -20  # ids of a subgraph's own ends
# all in the canvas's units
TITLE = 30
STACK = 98  # between the bodies of two nodes in a column: a title bar and room for what a frontend draws larger
LANE = 20  # between lanes, as between the slots of a node
CLEAR = 16  # between a link and a node
END_WIDTH = 150  # of a subgraph's own ends
SLOT, FIRST_SLOT = 20, 14  # height of a slot, and where the first one lies below the body's top

Box = tuple[float, float, float, float]  # left, top of the body, width, height


@dataclass(frozen=True)
class Edge:
    link: int
    start: int
    start_slot: int
    end: int
    end_slot: int


@dataclass
class Layout:
    """Boxes of nodes by id, those of both ends, the corners of links, and the last corner of each link that has any."""

    boxes: dict[int, Box] = field(default_factory=dict)
    input: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    reroutes: list[dict[str, Any]] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)


class _Plan:
    """One graph's layout while it is made."""

    def __init__(self, columns: list[list[tuple[int, tuple[float, float]]]], edges: list[Edge], gutter: int) -> None:
        self.columns, self.edges = columns, edges
        self.column = {IN: -1, OUT: len(columns)}
        for number, column in enumerate(columns):
            for item, _ in column:
                self.column[item] = number
        self.lefts: list[float] = []
        x = 0.0
        for column in columns:
            self.lefts.append(x)
            x += max(width for _, (width, _) in column) + gutter
        self.right = x - gutter
        self.lanes = self._lanes()
        self.boxes: dict[int, Box] = {}
        for number, column in enumerate(columns):
            through = [lane for (_, _), (lane, first, last) in self.lanes.items() if first <= number <= last]
            y = (max(through) + 1) * LANE + TITLE + 2 * CLEAR if through else 0.0
            wide = max(width for _, (width, _) in column)
            for item, (_, height) in column:
                self.boxes[item] = (self.lefts[number], y, wide, height)
                y += height + STACK

    def _lanes(self) -> dict[tuple[int, int], tuple[int, int, int]]:
        """For each output whose links pass columns: its lane, the first and the last of these columns."""
        spans: dict[tuple[int, int], tuple[int, int]] = {}
        aims: dict[tuple[int, int], tuple[int, int, int]] = {}
        for edge in self.edges:
            start, end = self.column[edge.start], self.column[edge.end]
            if end - start < 2:
                continue
            key = (edge.start, edge.start_slot)
            first, last = spans.get(key, (start + 1, end - 1))
            spans[key] = (first, max(last, end - 1))
            order = [item for item, _ in self.columns[end]].index(edge.end) if edge.end != OUT else 0
            # the farthest target decides, for there the lane ends
            aims[key] = max(aims.get(key, (-1, 0, 0)), (end, -order, -edge.end_slot))
        taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
        lanes: dict[tuple[int, int], tuple[int, int, int]] = {}
        for key in sorted(spans, key=lambda key: (-aims[key][0], -aims[key][1], -aims[key][2])):
            first, last = spans[key]
            lane = 0
            while any(a <= last and first <= b for a, b in taken[lane]):
                lane += 1
            taken[lane].append((first, last))
            lanes[key] = (lane, first, last)
        return lanes

    def lane_y(self, key: tuple[int, int]) -> float:
        return self.lanes[key][0] * LANE + FIRST_SLOT

    def free(self, y1: float, y2: float, first: int, last: int) -> bool:
        """Whether a link between these heights passes the columns clear of their nodes."""
        low, high = min(y1, y2) - CLEAR, max(y1, y2) + CLEAR
        return all(
            top - TITLE >= high or top + height <= low
            for number in range(first, last + 1)
            for _, top, _, height in (self.boxes[item] for item, _ in self.columns[number])
        )


def lay_out(
    columns: list[list[tuple[int, tuple[float, float]]]],
    edges: list[Edge],
    inputs: int,
    outputs: int,
    gutter: int,
    corners: Iterator[int],
) -> Layout:
    """columns: (id, size) of their nodes from above. inputs, outputs: how many the graph has as a subgraph. corners:
    the ids of its links' corners."""
    plan = _Plan(columns, edges, gutter)
    layout = Layout(dict(plan.boxes))
    layout.input = [-gutter - END_WIDTH, -10, END_WIDTH, 48 + SLOT * inputs]
    layout.output = [round(plan.right) + gutter, -10, END_WIDTH, 48 + SLOT * outputs]

    def height(item: int, slot: int) -> float:
        return FIRST_SLOT + SLOT * slot + (0 if item in (IN, OUT) else plan.boxes[item][1])

    def out(item: int) -> float:
        return -gutter if item == IN else plan.boxes[item][0] + plan.boxes[item][2]

    grouped: dict[tuple[int, int], list[Edge]] = defaultdict(list)
    for edge in edges:
        if plan.column[edge.end] - plan.column[edge.start] > 1:
            grouped[edge.start, edge.start_slot].append(edge)
    for key, found in grouped.items():
        y, lane = height(*key), plan.lane_y(key)
        first = plan.column[key[0]] + 1
        last_corner: dict[str, Any] | None = None
        by_column: dict[int, list[Edge]] = defaultdict(list)
        for edge in found:
            by_column[plan.column[edge.end]].append(edge)
        for column in sorted(by_column):
            rest = [
                edge for edge in by_column[column]
                if last_corner or not plan.free(y, height(edge.end, edge.end_slot), first, column - 1)
            ]  # fmt: skip
            if not rest:
                continue
            if last_corner is None and not plan.free(y, lane, first, column - 1):
                last_corner = _corner(layout, next(corners), out(key[0]) + 0.3 * gutter, lane, None)
            left = layout.output[0] if column == len(columns) else plan.lefts[column]
            last_corner = _corner(layout, next(corners), left - 0.4 * gutter, lane, last_corner)
            for edge in rest:
                layout.ends[edge.link] = last_corner["id"]
    by_id = {corner["id"]: corner for corner in layout.reroutes}
    for link, last in layout.ends.items():
        corner: dict[str, Any] | None = by_id[last]
        while corner:
            corner["linkIds"].append(link)
            corner = by_id.get(corner.get("parentId"))
    return layout


def _corner(layout: Layout, number: int, x: float, y: float, parent: dict[str, Any] | None) -> dict[str, Any]:
    corner: dict[str, Any] = {"id": number}
    if parent:
        corner["parentId"] = parent["id"]
    corner |= {"pos": [round(x), round(y)], "linkIds": []}
    layout.reroutes.append(corner)
    return corner
