"""Finds the parameter that a layer's name in a LoRA file means, in one table of the model's own names.

The table has every parameter and every layer with parameters, under diffusers' name and under the original one. Tools
write these names after prefixes of their own, and some write underscores for dots. So a name matches if the rest before
a name of the table consists of words that name a model, in any order.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from torch import nn

from .configs import CONNECTOR_STEPS, TRANSFORMER_STEPS, translate

WORDS = frozenset(
    {"base", "model", "diffusion", "transformer", "module", "pipe", "dit", "unet", "net", "lora", "lycoris"}
    | {"orig", "mod", "ltx", "ltxv", "ltx2", "denoiser"}
)
"""What a prefix before the transformer's names may consist of."""
CONNECTOR_WORDS = WORDS | {"text", "encoder", "encoders", "embedding", "embeddings", "projection", "connectors"}
UNDERSCORES = re.compile("_+")
OF_CONNECTORS = re.compile(
    r"(^|[._])((video|audio)[._](connector[._]|aggregate[._]embed|text[._]proj[._]in)|embeddings[._]connector[._])"
)
"""Found in every name of a layer of the text connectors, whatever stands before it, and in none of the transformer."""
UNSAID = "video_embeddings_connector_", "embeddings_connector_"
"""musubi-tuner leaves out of which stream a connector is where it is the picture's."""


class Names:
    """The table of one model. It is built from the module, whose layers may be quantized."""

    def __init__(self, module: nn.Module) -> None:
        self.of_connectors = isinstance(module, LTX2TextConnectors)
        self._steps = CONNECTOR_STEPS if self.of_connectors else TRANSFORMER_STEPS
        self._words = CONNECTOR_WORDS if self.of_connectors else WORDS
        back = {theirs: original for original, theirs in self._steps.items()}
        self._table: dict[str, set[str]] = defaultdict(set)
        self._parameters = {name for name, _ in module.named_parameters()}
        owners = (name.rpartition(".")[0] for name in self._parameters if name.endswith((".weight", ".bias")))
        for name in {*self._parameters, *owners}:
            for spelled in (name, translate(name, back)):
                self._table[_flat(spelled)].add(name)
                if _flat(spelled).startswith(UNSAID[0]):
                    self._table[_flat(spelled).replace(*UNSAID, 1)].add(name)
        self._longest = max(map(len, self._table), default=0)

    def resolve(self, layers: Iterable[str]) -> dict[str, set[str]]:
        """Maps layers' names of one file to the model's layers or parameters; several for a name that is ambiguous.

        If none of the names has a prefix that names a model, the file's own prefix counts, provided that at least half
        of its layers are the model's under it.
        """
        layers = [layer for layer in layers if bool(OF_CONNECTORS.search(layer)) == self.of_connectors]
        found = {layer: owners for layer in layers if (owners := self._owners(layer))}
        if found or not layers:
            return found
        tails = {layer: dict(self._tails(layer)) for layer in layers}
        prefixes = Counter(prefix for cuts in tails.values() for prefix in cuts)
        prefix, count = prefixes.most_common(1)[0] if prefixes else ("", 0)
        if 2 * count < len(layers):
            return {}
        return {layer: cuts[prefix] for layer, cuts in tails.items() if prefix in cuts}

    def parameter(self, owner: str, last: str) -> str | None:
        """The parameter's name for a layer or parameter of `resolve` and `weight` or `bias`; None if there is none."""
        if owner in self._parameters:
            return owner if last == "weight" else None
        return name if (name := f"{owner}.{last}") in self._parameters else None

    def _owners(self, layer: str) -> set[str]:
        found = {
            owner
            for prefix, owners in self._tails(layer)
            if set(re.split(r"[._]+", prefix)) - {""} <= self._words
            for owner in owners
        }
        dotted = f".{translate(layer, self._steps)}"
        return {owner for owner in found if dotted.endswith(f".{owner}")} or found

    def _tails(self, layer: str) -> Iterator[tuple[str, set[str]]]:
        """Every way to cut a name into a prefix and a name of the table."""
        for spelled in dict.fromkeys((layer, translate(layer, self._steps))):
            flat = _flat(spelled)
            first = max(len(flat) - self._longest - 1, 0)  # a name in a file may be very long
            for start in [0, *(match.end() for match in UNDERSCORES.finditer(flat, first))]:
                if flat[start:] in self._table:
                    yield flat[:start], self._table[flat[start:]]


def _flat(name: str) -> str:
    return name.replace(".", "_")
