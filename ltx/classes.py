"""Another class for a module that is loaded already.

diffusers and transformers build the modules, and their layers are right; three times something around the layers has to
be ours: the transformer's blocks take the passes of a step as rows of a batch (block.py), the VAE's decoder blocks keep
fewer tensors alive (decode.py), and under ComfyUI each layer fetches its weights when it is called (nodes/memory.py).
A subclass of the module's own class changes the forward alone: names of weights, checkpoints, hooks and compiled code
stay as they are, no weight is copied, and `isinstance` still holds. A hook could not replace a forward, and building
the modules from classes of our own would need a second copy of diffusers' constructors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import nn


def give_classes(
    modules: Iterable[nn.Module],
    classes: Mapping[type[nn.Module], type[nn.Module]],
    fits: Callable[[nn.Module], bool] = lambda module: True,
) -> list[nn.Module]:
    """Gives each module of exactly a class in `classes` the subclass beside it, where it `fits` → those changed.

    Doing it again changes nothing.
    """
    changed = [module for module in modules if type(module) in classes and fits(module)]
    for module in changed:
        module.__class__ = classes[type(module)]
    return changed
