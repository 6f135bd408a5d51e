"""Turns a request into a ComfyUI graph: the committed workflows, combined and filled in."""
