"""What a job takes of memory, and blocks that wait in host memory."""
