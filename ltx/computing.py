"""The words for the ways to compute, which a command line and a node offer. job.py and diffusion/attention.py say what
each does. Nothing here needs torch."""

from __future__ import annotations

DTYPES = ("float32", "bfloat16")
AUTO, NEVER, BLOCKS = OFFLOAD = ("auto", "none", "blocks")
TORCH, MATH, SAGE, FLASH, FLASH_3, XFORMERS = ATTENTION = ("torch", "math", "sage", "flash", "flash 3", "xformers")
WITH_FLOAT64 = ("cpu", "cuda", "meta")
WITH_FLOAT8 = (*WITH_FLOAT64, "xpu")
"""The kinds of devices on which torch has these dtypes. Apple's GPUs (mps) have neither, and some of Intel's (xpu) have
no float64. What needs them is computed on the CPU there, or without them."""
BY_MEMORY = 0  # the size of a tile that is chosen by the free memory
