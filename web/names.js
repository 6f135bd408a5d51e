// The names of saved videos: the editor fills in %date:yyyy-MM-dd% and %Node.widget% as for its own nodes.
import { app } from "../../scripts/app.js";

const NODES = new Set(["LTXA2VSaveVideo", "LTXA2VSaveLatentVideo"]);

// Where the editor no longer offers this function, the server fills the names in.
function filledIn(text) {
  return window.comfyAPI?.utils?.applyTextReplacements?.(app, text) ?? text;
}

app.registerExtension({
  name: "LTXA2V.FileNames",
  nodeCreated(node) {
    const prefix = NODES.has(node.comfyClass) && node.widgets?.find((widget) => widget.name === "filename_prefix");
    if (prefix) prefix.serializeValue = () => filledIn(prefix.value);
  },
});
