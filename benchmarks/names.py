"""The benchmarks by name, in the order of the page: each is a function of its name, in a module of this folder."""

from __future__ import annotations

BENCHMARKS = {
    "peer": "peer",
    "growth": "peer",
    "levels": "levels",
    "host": "host",
    "api": "api",
    "load": "load",
    "encode": "encode",
    "gpu": "gpu",
}
LACKING = {"encode": "ffmpeg", "gpu": "CUDA"}
"""What is said to be missing where one cannot run."""
