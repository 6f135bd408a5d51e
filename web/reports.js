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

const opened = () => app.extensionManager?.workflow?.activeWorkflow;
const origins = new Map(); // the workflow that a prompt of this page was queued from, by the prompt's id
let running; // the id of the prompt that runs

// Whether the open workflow may be the one that runs. A page that was loaded again knows of no prompt, so it may.
function here() {
  const origin = origins.get(running);
  return !origin || origin.deref() === opened();
}

const queuePrompt = api.queuePrompt;
api.queuePrompt = async function (...given) {
  const workflow = opened();
  const answer = await queuePrompt.apply(this, given);
  const id = answer?.prompt_id; // it may run before this answer is here
  if (workflow && id) origins.set(id, new WeakRef(workflow));
  return answer;
};

api.addEventListener("execution_start", ({ detail }) => {
  if (running !== detail.prompt_id) origins.delete(running);
  running = detail.prompt_id;
});

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

// What stands on a node, as its output has it.
function said(node) {
  const text = node.widgets?.find((widget) => widget.name === NAME)?.value;
  return text ? [text] : [];
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

// Outputs that come while another tab is open are kept by the path of their node.
function withKey(found) {
  const [id, graph] = found.split(":").reverse();
  return find(found) ?? whole().subgraphs?.get(graph)?.getNodeById(id);
}

api.addEventListener(TEXT, ({ detail }) => {
  const node = here() && find(detail.node);
  if (ours(node)) show(node, detail.text);
});

api.addEventListener("executing", ({ detail }) => {
  const node = detail && here() && find(detail);
  if (!ours(node)) return;
  show(node, "");
  for (const kept of [key(node), detail]) delete app.nodeOutputs?.[kept]?.[TEXT];
});

app.registerExtension({
  name: "LTXA2V.Reports",
  nodeCreated(node) {
    if (!ours(node)) return;
    const before = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      before?.call(this, output, ...rest);
      if (!output?.[TEXT]?.length) return;
      if (here()) show(this, output[TEXT].join("\n"));
      // the frontend takes it for the output of this node, and gives it back with this tab
      else if (app.nodeOutputs) app.nodeOutputs[key(this)] = { ...output, [TEXT]: said(this) };
    };
  },
  // The frontend makes all nodes anew for an undo and for another tab, and then gives their outputs back. A node that
  // would grow stays without its text where the frontend would take that for a change of the person, and forget the redo.
  onNodeOutputsUpdated(outputs) {
    const { _restoringState: undoing, redoQueue } = opened()?.changeTracker ?? {};
    const grows = undoing === false && redoQueue?.length === 0;
    for (const [found, output] of Object.entries(outputs)) {
      const node = output?.[TEXT]?.length && withKey(found);
      if (!ours(node)) continue;
      if (grows || node.size[1] >= node.computeSize()[1] + ROOM) show(node, output[TEXT].join("\n"));
    }
  },
});
