"""The benchmarks by name, in the order of the page. Each is a function with this name in a module of this folder."""

from __future__ import annotations

BENCHMARKS = {
    "peer": "peer",
    "growth": "peer",
    "levels": "levels",
    "host": "host",
    "api": "api",
    "load": "load",
    "encode": "encode",
    "cost": "cost",
    "weights": "weights",
    "formats": "formats",
    "films": "films",
    "edits": "edits",
    "machines": "machines",
    "gpu": "card",
}
LACKING = {"encode": "ffmpeg", "machines": "Ray", "gpu": "CUDA"}
"""What is missing if a benchmark cannot run."""
