// The texts of nodes (reports, the prompt that is being written): each stands on its node, and stays after the run. They
// come while a node runs, and as its output, which the server sends again for a cached node that a run reads from. When
// the node runs again, its old text goes, because it may have nothing to say this time.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TEXT = "ltx_a2v_text"; // the event, and the key of the output
const NAME = "ltx_report"; // of the widget
const HEIGHT = 52; // two lines; more are scrolled
const ROOM = HEIGHT + 4; // what a node grows by; the canvas puts 4 between widgets

// While a graph runs, another one may be open, whose nodes have the same ids.
const ours = (node) => node?.comfyClass?.startsWith("LTXA2V");

function show(node, text) {
  let widget = node.widgets?.find((widget) => widget.name === NAME);
  if (!widget && !text) return;
  if (!widget) {
    widget = app.widgets.STRING(node, NAME, ["STRING", { multiline: true }], app).widget;
    widget.label = "report";
    widget.serialize = false; // in the graph
    Object.assign(widget.options, { serialize: false, read_only: true, getMinHeight: () => HEIGHT });
    if (widget.element) widget.element.readOnly = true;
    const least = node.computeSize();
    node.setSize([Math.max(node.size[0], least[0]), Math.max(node.size[1], least[1])]);
  }
  widget.value = text;
  app.graph.setDirtyCanvas(true);
}

function whole() {
  const graph = app.rootGraph ?? app.graph;
  return graph.rootGraph ?? graph;
}

// A node in subgraphs has the ids of the nodes around it before its own: "5:3".
function find(path) {
  let graph = whole();
  const ids = String(path).split(":");
  for (const id of ids.slice(0, -1)) graph = graph?.getNodeById(id)?.subgraph;
  return graph?.getNodeById(ids.at(-1));
}

// The key of its output: a node in a subgraph has that graph's id before its own.
function key(node) {
  return node.graph && node.graph !== whole() ? `${node.graph.id}:${node.id}` : String(node.id);
}

function withKey(found) {
  const [id, graph] = found.split(":").reverse();
  return (graph ? whole().subgraphs?.get(graph) : whole())?.getNodeById(id);
}

api.addEventListener(TEXT, ({ detail }) => {
  const node = find(detail.node);
  if (ours(node)) show(node, detail.text);
});

api.addEventListener("executing", ({ detail }) => {
  const node = detail && find(detail);
  if (!ours(node)) return;
  show(node, "");
  delete app.nodeOutputs?.[key(node)]?.[TEXT];
});

app.registerExtension({
  name: "LTXA2V.Reports",
  nodeCreated(node) {
    if (!ours(node)) return;
    const before = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      before?.call(this, output, ...rest);
      if (output?.[TEXT]?.length) show(this, output[TEXT].join("\n"));
    };
  },
  // The frontend makes all nodes anew for an undo and for another tab, and then gives their outputs back. A node that
  // would grow stays without its text: the frontend would take that for a change of the person, and forget the redo.
  onNodeOutputsUpdated(outputs) {
    for (const [found, output] of Object.entries(outputs)) {
      const node = output?.[TEXT]?.length && withKey(found);
      if (ours(node) && node.size[1] >= node.computeSize()[1] + ROOM) show(node, output[TEXT].join("\n"));
    }
  },
});
