// Colours for the links and sockets of this pack's own types; the frontend draws unknown types all alike. The canvas
// takes them from its tables, Nodes 2.0 from variables of a stylesheet.
import { app } from "../../scripts/app.js";

const COLORS = {
  LTXA2V_MODEL: "#B39DDB",
  LTXA2V_CONNECTORS: "#8D9AA5",
  LTXA2V_VIDEO_VAE: "#FF6E6E",
  LTXA2V_AUDIO_VAE: "#4DD0C4",
  LTXA2V_TEXT_ENCODER: "#FFD500",
  LTXA2V_VOCODER: "#80CBC4",
  LTXA2V_UPSCALER: "#C58B6A",
  LTXA2V_TEXT: "#FFA931",
  LTXA2V_AUDIO: "#6FCF5B",
  LTXA2V_GUIDES: "#64B5F6",
  LTXA2V_WINDOWS: "#4DD0E1",
  LTXA2V_TIMELINE: "#FFD54F",
  LTXA2V_GUIDANCE: "#E57FB0",
  LTXA2V_RESTART: "#D4C35A",
  LTXA2V_CLIP: "#9FA8DA",
  LTXA2V_RETAKE: "#F48FB1",
  LTXA2V_REFERENCES: "#A5D6A7",
};

function paint() {
  Object.assign(app.canvas.default_connection_color_byType, COLORS);
  Object.assign(window.LGraphCanvas.link_type_colors, COLORS);
}

const style = document.createElement("style");
style.textContent = `:root { ${Object.entries(COLORS)
  .map(([type, color]) => `--color-datatype-${type}: ${color};`)
  .join(" ")} }`;
document.head.append(style);

// The frontend's palette, loaded after the extensions, empties the colours of types that it does not know.
app.registerExtension({ name: "LTXA2V.LinkColors", setup: paint, beforeConfigureGraph: paint });
