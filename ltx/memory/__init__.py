"""Memory: a forecast of what a job needs, and offloading of blocks to host memory."""
