"""A request as a graph of ComfyUI's: the committed workflows, put together and filled in."""
