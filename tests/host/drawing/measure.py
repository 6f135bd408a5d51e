"""Measures an open graph on the page, in whichever way the frontend draws it: zoom, overlaps, links behind nodes."""

from __future__ import annotations

from dataclasses import dataclass

from a2v.tests.host.browser import Frontend
from packaging.version import Version

RENDER = "on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
"""Switches between the frontend's two renderings: Nodes 2.0, or the canvas."""
FINISHED = Version("1.40")
"""The frontend from which on Nodes 2.0 is offered to everybody. Before, it is an experiment that draws other sizes."""
DRAWN = "() => [...app.canvas.graph.links.values()].every(link => link.path)"
"""Whether all links of the open graph are drawn."""
# In Nodes 2.0 nodes are elements of the page, else the canvas knows their boxes. A link that has corners is drawn in
# pieces: each corner has the one before it. A piece that is drawn behind a node enters it somewhere.
MEASURE = """() => {
    const {canvas} = app, {graph, ds} = canvas;
    const room = canvas.canvas.getBoundingClientRect();
    const box = item => {
        const drawn = document.querySelector(`[data-node-id="${item.id}"]`)?.getBoundingClientRect();
        if (!drawn?.width) return [...item.boundingRect];
        return [(drawn.x - room.x) / ds.scale - ds.offset[0], (drawn.y - room.y) / ds.scale - ds.offset[1],
                drawn.width / ds.scale, drawn.height / ds.scale];
    };
    const name = item => item.title ?? item.constructor.name;
    const items = [...graph.nodes, ...[graph.inputNode, graph.outputNode].filter(Boolean)];
    const boxes = new Map(items.map(item => [item, box(item)]));
    const apart = (a, b) => a[0] + a[2] <= b[0] || b[0] + b[2] <= a[0] || a[1] + a[3] <= b[1] || b[1] + b[3] <= a[1];
    const overlaps = items.flatMap((a, at) => items.slice(at + 1)
        .filter(b => !apart(boxes.get(a), boxes.get(b))).map(b => `${name(a)} and ${name(b)}`));
    const pen = new OffscreenCanvas(1, 1).getContext('2d');
    pen.lineWidth = 4;
    const enters = (path, [x, y, width, height]) => {
        const hit = (right, down) => pen.isPointInStroke(path, x + right, y + down);
        for (let at = 3; at < width - 3; at += 2) if (hit(at, 3) || hit(at, height - 3)) return true;
        for (let at = 3; at < height - 3; at += 2) if (hit(3, at) || hit(width - 3, at)) return true;
        return false;
    };
    const links = [...graph.links.values()];
    const ends = link => [link.origin_id, link.target_id].map(id => items.find(item => String(item.id) === String(id)));
    const pieces = [
        ...links.map(link => [link.path, ends(link), [link]]),
        ...[...graph.reroutes.values()].map(corner => {
            const mine = links.filter(link => corner.linkIds.has(link.id));
            return [corner.path, mine.map(link => ends(link)[0]), mine];
        }),
    ];
    const behind = pieces.flatMap(([path, own, mine]) => items
        .filter(item => path && !own.includes(item) && enters(path, boxes.get(item)))
        .map(item => `${mine.map(link => ends(link).map(name).join(' > ')).join(', ')} behind ${name(item)}`));
    const backward = links.filter(link => {
        const [from, to] = ends(link).map(end => boxes.get(end));
        return from[0] + from[2] >= to[0];
    }).map(link => ends(link).map(name).join(' > '));
    const outside = graph.groups.filter(group => canvas.ctx.measureText(group.title).width > group.size[0])
        .map(group => group.title);
    const [low, high] = [0, 1].map(side => [0, 1].map(axis => Math[side ? 'max' : 'min'](
        ...[...boxes.values()].map(found => found[axis] + side * found[axis + 2]))));
    const seen = [low[0] + ds.offset[0], low[1] + ds.offset[1], high[0] + ds.offset[0], high[1] + ds.offset[1]]
        .map(value => value * ds.scale);
    return {zoom: ds.scale, overlaps, behind, backward, outside, undrawn: pieces.filter(([path]) => !path).length,
            hidden: seen[0] < 0 || seen[1] < 0 || seen[2] > room.width || seen[3] > room.height, links: links.length,
            view: seen.map(Math.round)};
}"""
# the subgraph of a node is opened as by a double click on it; without a node, the graph around all
ENTER = """async path => {
    let graph = app.rootGraph ?? app.graph;
    graph = graph.rootGraph ?? graph;
    if (!path.length) app.canvas.setGraph(graph);
    for (const title of path) {
        const node = graph.nodes.find(node => node.isSubgraphNode?.() && node.title === title);
        graph = node.subgraph;
        app.canvas.openSubgraph(graph, node);
    }
    await new Promise(done => setTimeout(done, 300));
    await app.extensionManager.command.execute('Comfy.Canvas.FitView');
    await new Promise(done => setTimeout(done, 700));
}"""
LOOKS, BETWEEN = 20, 300  # at most; milliseconds


@dataclass(frozen=True)
class Looks:
    """zoom: 1 is 100 %. The lists name what is wrong, by the titles of nodes."""

    zoom: float
    overlaps: list[str]
    behind: list[str]  # links behind nodes
    backward: list[str]  # links that do not lead to the right
    outside: list[str]  # titles that are wider than their group
    undrawn: int  # pieces of links that were not drawn yet, so that nothing is known of them
    hidden: bool  # whether a part lies outside the window
    links: int
    view: list[int]

    @property
    def wrong(self) -> list[str]:
        return [
            *(f"{pair} overlap" for pair in self.overlaps), *self.behind,
            *(f"{link} leads back" for link in self.backward), *(f"{title} is too wide" for title in self.outside),
            *([f"{self.undrawn} links are not drawn"] if self.undrawn else []),
        ]  # fmt: skip


def look(frontend: Frontend) -> Looks:
    """What the page shows once it has come to rest: its nodes get their places and sizes over several frames."""
    seen = frontend.page.evaluate(MEASURE)
    for _ in range(LOOKS):
        frontend.page.wait_for_timeout(BETWEEN)
        before, seen = seen, frontend.page.evaluate(MEASURE)
        if seen == before:
            break
    return Looks(**seen)


def enter(frontend: Frontend, *titles: str) -> None:
    """Opens a subgraph by the titles of its node and those around it, all of it in view; none: the whole graph."""
    frontend.page.evaluate(ENTER, list(titles))
