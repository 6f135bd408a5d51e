"""The words for the ways to compute, which a command line and a node offer. job.py and diffusion/attention.py say what
each does. Nothing here needs torch."""

from __future__ import annotations

DTYPES = ("float32", "bfloat16")
AUTO, NEVER, BLOCKS = OFFLOAD = ("auto", "none", "blocks")
TORCH, MATH, SAGE, FLASH, FLASH_3, XFORMERS = ATTENTION = ("torch", "math", "sage", "flash", "flash 3", "xformers")
CPU = "cpu"
CUDA, XPU, MPS = GPUS = ("cuda", "xpu", "mps")
"""The kinds of GPUs, of NVIDIA and AMD, Intel, and Apple, in the order in which a job takes one (devices.py). What is
made for one kind only, which are kernels, page-locked copies beside computing, and batches of passes, is for cuda."""
WITH_FLOAT64 = (CPU, CUDA, "meta")
WITH_FLOAT8 = (*WITH_FLOAT64, XPU)
"""The kinds of devices on which torch has these dtypes. Apple's GPUs (mps) have neither, and some of Intel's (xpu) have
no float64. What needs them is computed on the CPU there, or without them."""
WITH_COMPILER = (CPU, CUDA)
"""The kinds of devices for which blocks are compiled. torch's compiler is a prototype for Apple's GPUs, and it was not
tried here with Intel's."""
WITH_ASYNC_COPIES = (CUDA, XPU)
"""The kinds of devices to which torch copies while the host goes on. To Apple's GPUs such a copy may read memory that
the host has given back meanwhile; ComfyUI makes none there, too."""
BY_MEMORY = 0  # the size of a tile that is chosen by the free memory
