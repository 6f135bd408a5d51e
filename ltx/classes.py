"""Gives another class to a module that is loaded already.

diffusers and transformers build the modules, and their layers are right, but three forwards have to be ours. The
transformer's blocks take the passes of a step as rows of a batch (block.py), the VAE's decoder blocks keep fewer
tensors in memory (decode.py), and under ComfyUI each layer fetches its weights when it is called (nodes/fetching.py). A
subclass of the module's own class changes only the forward: the names of weights, checkpoints, hooks and compiled code
stay the same, no weight is copied, and `isinstance` still holds. A hook cannot replace a forward, and building the
modules from our own classes would need a second copy of diffusers' constructors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import nn


def give_classes(
    modules: Iterable[nn.Module],
    classes: Mapping[type[nn.Module], type[nn.Module]],
    fits: Callable[[nn.Module], bool] = lambda module: True,
) -> list[nn.Module]:
    """Gives each module whose type is a key of `classes` the subclass there, if `fits` allows it. Returns the changed
    modules. A second call changes nothing."""
    changed = [module for module in modules if type(module) in classes and fits(module)]
    for module in changed:
        module.__class__ = classes[type(module)]
    return changed
