"""What nodes of other packs hand over in ComfyUI's own types, one file a type: what has one meaning is read, and
everything else is refused in one sentence by the node that takes it, before a model computes."""
