"""Makes the JSON of a workflow out of stages: subgraphs, their slots, the links, and where everything lies.

ComfyUI's frontend makes the single nodes, so that sockets, values and the order of widgets are its own.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from a2v.tests.host.browser import Frontend, Workflow

from .layout import IN, OUT, Edge, lay_out
from .parts import Node, Stage

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Json = dict[str, Any]
PROJECT = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
PACK = {"cnr_id": PROJECT["project"]["name"], "ver": PROJECT["project"]["version"]}
CORE = {"cnr_id": "comfy-core", "ver": PROJECT["tool"]["comfy"]["requires-comfyui"].removeprefix(">=")}
"""What ComfyUI's Manager finds a missing node by: its pack's name in the registry, and the version of it."""
MADE = """specs => {
    app.graph.clear();
    return specs.map(({id, kind, title, values}) => {
        const node = LiteGraph.createNode(kind);
        if (!node) throw new Error(`no node ${kind}`);
        node.id = id;
        if (title) node.title = title;
        app.graph.add(node);
        for (const [name, value] of values) {
            const widget = name === null ? node.widgets[0] : node.widgets.find(widget => widget.name === name);
            if (!widget) throw new Error(`no widget ${name} at ${kind}`);
            widget.value = value;
        }
        const widgets = Object.fromEntries((node.widgets ?? []).map(widget => [widget.name, widget.value]));
        return JSON.stringify({node: node.serialize(), size: [...node.computeSize()], widgets});
    });
}"""
SIZES = """() => [app.graph, ...app.graph.subgraphs.values()].flatMap(graph => graph.nodes.map(node =>
    [String(node.id), [...node.computeSize()]]))"""
REPORT = 52  # what a node grows by to show its report after a run
SLOT = 20
Source = tuple[str, str]  # key of a node, its output


@dataclass
class Slot:
    """An input or output of a stage. widget: the name of the widget it stands for; value: that widget's."""

    name: str
    type: str
    label: str | None = None
    widget: bool = False
    value: Any = None
    links: list[int] = field(default_factory=list)  # within the stage

    def outside(self) -> Json:
        found: Json = {"name": self.name, "type": self.type}
        if self.label and self.label != self.name:
            found["label"] = self.label
        if self.widget:
            found["widget"] = {"name": self.name}
        return found


@dataclass
class Drawn:
    """A stage that is being drawn: its slots, its links [id, from, slot, to, slot, type]."""

    stage: Stage
    id: int
    uuid: str
    inputs: list[Slot] = field(default_factory=list)
    outputs: list[Slot] = field(default_factory=list)
    sources: dict[Source, int] = field(default_factory=dict)  # what comes in → its input
    given: dict[Source, int] = field(default_factory=dict)  # what goes out → its output
    links: list[list[Any]] = field(default_factory=list)


class Graph:
    """A workflow in the making. Errors of the frontend: a node, widget or socket does not exist."""

    def __init__(self, root: Stage, frontend: Frontend, name: str) -> None:
        self.root, self.frontend, self.name = root, frontend, name
        self.nodes = {node.key: node for node in root.nodes()}
        self.ids = {key: number for number, key in enumerate(self.nodes, 1)}
        made = frontend.page.evaluate(MADE, [
            {"id": self.ids[node.key], "kind": node.kind, "title": node.title, "values": list(node.values.items())}
            for node in self.nodes.values()
        ])  # fmt: skip
        self.made: dict[str, Json] = dict(zip(self.nodes, map(json.loads, made), strict=True))
        for found in self.made.values():
            for slot in (*found["node"].get("inputs", ()), *found["node"].get("outputs", ())):
                slot.pop("localized_name", None)
        stages = [*root.stages(), root]
        self.drawn = {
            stage.key: Drawn(stage, len(self.nodes) + number, self._uuid(stage.key))
            for number, stage in enumerate(stages, 1)
        }
        self.paths = dict(self._paths(root, ()))
        self.last_link = 0
        self._wire()

    def _uuid(self, what: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"ltx-audio-to-video/{self.name}/{what}"))

    def _paths(self, stage: Stage, above: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Of each node the stages that it is in, the root first."""
        here = (*above, stage.key)
        for item in stage.items:
            if isinstance(item, Stage):
                yield from self._paths(item, here)
            else:
                yield item.key, here

    def slot(self, key: str, name: str, side: str) -> int:
        """Number of an input or output of a node, by the name that is seen; ComfyUI's own AUDIO is audio, too."""
        slots = self.made[key]["node"][side]
        for number, slot in enumerate(slots):
            if name in (slot.get("label"), slot["name"], slot["name"].lower()):
                return number
        raise ValueError(f"no {name} among the {side} of {self.nodes[key].kind}")

    def link(self, where: Drawn, start: int, start_slot: int, end: int, end_slot: int, kind: str) -> int:
        """A new link within a stage."""
        self.last_link += 1
        where.links.append([self.last_link, start, start_slot, end, end_slot, kind])
        for place, slots, number in ((start, where.inputs, start_slot), (end, where.outputs, end_slot)):
            if place == (IN if slots is where.inputs else OUT):
                slots[number].links.append(self.last_link)
        return self.last_link

    def _wire(self) -> None:
        for node in self.nodes.values():
            for name, link in node.links.items():
                key, output = link.split(".", 1)
                self._join((key, output), node.key, self.slot(node.key, name, "inputs"))
        for drawn in self.drawn.values():
            for name, link in drawn.stage.outputs.items():
                key, output = link.split(".", 1)
                number = self._out((key, output), self.paths[key].index(drawn.stage.key))
                drawn.outputs[number].name, drawn.outputs[number].label = name, None
        for drawn in self.drawn.values():  # inner stages come first
            for widget in drawn.stage.widgets:
                self._promote(drawn, widget.label, widget.targets)

    def _join(self, source: Source, target: str, slot: int) -> None:
        """Links an output to an input, through all walls of stages between them."""
        start, end = self.paths[source[0]], self.paths[target]
        pairs = enumerate(zip(start, end, strict=False))
        common = next((n for n, (a, b) in pairs if a != b), min(len(start), len(end)))
        kind = self.made[source[0]]["node"]["outputs"][self.slot(*source, "outputs")]["type"]
        place, number = self.ids[source[0]], self.slot(*source, "outputs")
        if len(start) > common:
            number = self._out(source, common)
            place = self.drawn[start[common]].id
        for inner in end[common:]:
            outer = self.drawn[self.paths_to(inner)]
            drawn = self.drawn[inner]
            if source not in drawn.sources:
                drawn.sources[source] = len(drawn.inputs)
                end_slot = self.made[target]["node"]["inputs"][slot]
                # A frontend shows the widget at the closed stage, too, where a link ends at a widget. Within a stage in
                # a stage 1.32.9 does so only under the widget's own name, newer ones under any; all count its value.
                value, said = self.made[target]["widgets"].get(end_slot["name"]), self._name(source, drawn.inputs)
                name, label = (end_slot["name"], said) if "widget" in end_slot else (said, None)
                drawn.inputs.append(Slot(name, kind, label, "widget" in end_slot, value))
                self.link(outer, place, number, drawn.id, drawn.sources[source], kind)
            place, number = IN, drawn.sources[source]
        self.link(self.drawn[end[-1]], place, number, self.ids[target], slot, kind)

    def paths_to(self, stage: str) -> str:
        """The stage that a stage lies in."""
        return next(path[path.index(stage) - 1] for path in self.paths.values() if stage in path)

    def _out(self, source: Source, level: int) -> int:
        """Leads an output out of its stages down to that level; its number at the outermost of them."""
        place, number = self.ids[source[0]], self.slot(*source, "outputs")
        kind = self.made[source[0]]["node"]["outputs"][number]["type"]
        for inner in reversed(self.paths[source[0]][level:]):
            drawn = self.drawn[inner]
            if source not in drawn.given:
                drawn.given[source] = len(drawn.outputs)
                drawn.outputs.append(Slot(self._name(source, drawn.outputs), kind))
                self.link(drawn, place, number, OUT, drawn.given[source], kind)
            place, number = drawn.id, drawn.given[source]
        return number

    def _name(self, source: Source, taken: list[Slot]) -> str:
        said = self.nodes[source[0]].says.get(source[1], source[1])
        if said in {slot.name for slot in taken}:
            said = f"{(self.nodes[source[0]].title or source[0]).lower()}: {said}"
        return said

    def _promote(self, drawn: Drawn, label: str, targets: tuple[tuple[str, str], ...]) -> None:
        """Shows a widget of inner nodes at the closed stage. Inner stages that show it already are passed through."""
        number = len(drawn.inputs)
        key, name = targets[0]
        found = self.made[key]
        kind = found["node"]["inputs"][self.slot(key, name, "inputs")]["type"]
        taken = {slot.name for slot in drawn.inputs}
        called = next(each for each in chain((name,), (f"{name}_{again}" for again in count(1))) if each not in taken)
        drawn.inputs.append(Slot(called, kind, label, True, found["widgets"][name]))
        within = self.paths[key][self.paths[key].index(drawn.stage.key) + 1 :]
        if within:
            inner = self.drawn[within[0]]
            slot = next(n for n, slot in enumerate(inner.inputs) if slot.widget and slot.label == label)
            self.link(drawn, IN, number, inner.id, slot, kind)
            return
        for key, name in targets:
            self.link(drawn, IN, number, self.ids[key], self.slot(key, name, "inputs"), kind)

    # the JSON

    def workflow(self, sizes: dict[str, tuple[float, float]] | None = None) -> Workflow:
        """sizes: of closed stages by id, as the frontend computes them."""
        root = self.drawn[self.root.key]
        # the root first: no two corners in a workflow have one id, or newer frontends warn of each and change it
        corners = count(1)
        bodies = {drawn.id: self._body(drawn, sizes or {}, corners) for drawn in reversed(self.drawn.values())}
        last_corner = next(corners) - 1
        body = bodies.pop(root.id)
        return {
            "id": self._uuid("root"), "revision": 0, "last_node_id": len(self.nodes) + len(self.drawn),
            "last_link_id": self.last_link, "nodes": body["nodes"],
            "links": [[link["id"], link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"],
                       link["type"]] for link in body["links"]],
            "groups": [], "definitions": {"subgraphs": [self._definition(drawn, bodies[drawn.id], last_corner) for drawn
                                                        in reversed(self.drawn.values()) if drawn is not root]},
            "config": {},
            "extra": {
                "reroutes": body["reroutes"],
                "linkExtensions": [{"id": link["id"], "parentId": link["parentId"]} for link in body["links"]
                                   if "parentId" in link],
            },
            "version": 0.4,
        }  # fmt: skip

    def _definition(self, drawn: Drawn, body: Json, last_corner: int) -> Json:
        bounds = {IN: body["input"], OUT: body["output"]}

        def slots(found: list[Slot], side: int) -> list[Json]:
            x, y, width, _ = bounds[side]
            at = x + width - 20 if side == IN else x + 24
            return [
                {"id": self._uuid(f"{drawn.stage.key}/{side}/{slot.name}"), "name": slot.name, "type": slot.type,
                 "linkIds": slot.links, **({"label": slot.label} if slot.label else {}),
                 "pos": [at, y + 24 + SLOT * number]} for number, slot in enumerate(found)
            ]  # fmt: skip

        return {
            "id": drawn.uuid, "version": 1,
            "state": {"lastGroupId": 0, "lastNodeId": len(self.nodes) + len(self.drawn), "lastLinkId": self.last_link,
                      "lastRerouteId": last_corner},
            "revision": 0, "config": {}, "name": drawn.stage.title,
            **({"description": drawn.stage.about} if drawn.stage.about else {}),
            "inputNode": {"id": IN, "bounding": body["input"]}, "outputNode": {"id": OUT, "bounding": body["output"]},
            "inputs": slots(drawn.inputs, IN), "outputs": slots(drawn.outputs, OUT), "widgets": [],
            "nodes": body["nodes"], "groups": [], "links": body["links"], "reroutes": body["reroutes"], "extra": {},
        }  # fmt: skip

    def _size(self, item: Node | Stage, sizes: dict[str, tuple[float, float]]) -> tuple[float, float]:
        if isinstance(item, Stage):
            drawn = self.drawn[item.key]
            rows = max(len(drawn.outputs), sum(not slot.widget for slot in drawn.inputs))
            width, height = sizes.get(str(drawn.id), (0, SLOT * rows + 26 * sum(slot.widget for slot in drawn.inputs)))
            return max(width, item.width), max(height, item.height)
        width, height = self.made[item.key]["size"]
        reports = item.kind != "LTXA2VReport" and any(
            output["name"] == "report" for output in self.made[item.key]["node"].get("outputs", ())
        )
        return max(width, item.width), max(height + REPORT * reports, item.height)

    def _body(self, drawn: Drawn, sizes: dict[str, tuple[float, float]], corners: Iterator[int]) -> Json:
        stage = drawn.stage
        item_ids = {item.key: self.drawn[item.key].id if isinstance(item, Stage) else self.ids[item.key]
                    for item in stage.items}  # fmt: skip
        columns = [
            [(item_ids[item.key], self._size(item, sizes)) for item in sorted(column, key=_place)]
            for column in stage.columns
        ]
        edges = [Edge(*link[:5]) for link in drawn.links]
        layout = lay_out(columns, edges, len(drawn.inputs), len(drawn.outputs), stage.gutter, corners)
        links = [
            {"id": number, "origin_id": start, "origin_slot": a, "target_id": end, "target_slot": b, "type": kind,
             **({"parentId": layout.ends[number]} if number in layout.ends else {})}
            for number, start, a, end, b, kind in drawn.links
        ]  # fmt: skip
        nodes = [self._node(item, layout.boxes[item_ids[item.key]], drawn.links) for item in stage.items]
        for order, node in enumerate(nodes):
            node["order"] = order
        return {"nodes": nodes, "links": links, "reroutes": layout.reroutes, "input": layout.input,
                "output": layout.output}  # fmt: skip

    def _node(self, item: Node | Stage, box: tuple[float, float, float, float], links: list[list[Any]]) -> Json:
        where = {"pos": [round(box[0]), round(box[1])], "size": [round(box[2]), round(box[3])]}
        if isinstance(item, Stage):
            drawn = self.drawn[item.key]
            found = {
                "id": drawn.id, "type": drawn.uuid, **where, "flags": {}, "order": 0, "mode": 0,
                "inputs": [slot.outside() for slot in drawn.inputs],
                "outputs": [slot.outside() for slot in drawn.outputs], "title": item.title, "properties": {},
                "widgets_values": [slot.value for slot in drawn.inputs if slot.widget],
            }  # fmt: skip
        else:
            found = {**self.made[item.key]["node"], **where}
            found["inputs"] = [dict(slot) for slot in found.get("inputs", ())]
            found["outputs"] = [dict(slot) for slot in found.get("outputs", ())]
            if item.kind != "MarkdownNote":  # the frontend's own
                found["properties"] = found["properties"] | (PACK if item.kind.startswith("LTXA2V") else CORE)
            if item.models:
                found["properties"] = found["properties"] | {
                    "models": [{"name": file.name, "url": file.url, "directory": file.folder} for file in item.models]
                }
        for slot in found["inputs"]:
            slot["link"] = None
        for slot in found["outputs"]:
            slot["links"] = []
        for number, start, a, end, b, _ in links:
            if end == found["id"]:
                found["inputs"][b]["link"] = number
            if start == found["id"]:
                found["outputs"][a]["links"].append(number)
        if item.color:
            found["color"], found["bgcolor"] = item.color
        return found


def _place(item: Node | Stage) -> int:
    return item.place if isinstance(item, Node) else 0


def sizes(frontend: Frontend) -> dict[str, tuple[float, float]]:
    """Of all nodes of the open workflow by id, those within subgraphs, too."""
    return {key: (width, height) for key, (width, height) in frontend.page.evaluate(SIZES)}
