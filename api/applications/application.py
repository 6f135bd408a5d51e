"""What an application is: its name in URLs, its inputs, and the way from a request to a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from ...ltx.errors import InputError
from ..graph.graph import Prompt
from ..graph.model_files import Listing
from .inputs import CheckedRequest, Invalid, Kind, check, invalid_from


@dataclass(frozen=True)
class Application:
    """id: `owner/family/…`, as the hosted service names it. inputs: the model that checks a body. files: the inputs
    that are files, and the kind of each.

    fixed: parameters that the application sets itself.

    find_models: takes ComfyUI's listings of files and of folders and returns the names of the models that the graph
    loads; raises ModelMissing. compose: takes the checked request, these names, field → name in the input folder, and
    the prefix of the output file; returns the graph; raises InputError.
    """

    id: str
    inputs: type[BaseModel]
    files: Mapping[str, Kind]
    find_models: Callable[[Listing, Listing], Any]
    compose: Callable[..., Prompt]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return owner_of(self.id)

    def check(self, body: Any) -> CheckedRequest:
        """Checks a body. Errors: Invalid."""
        return check(body, self.inputs, self.files, self.fixed)

    def invalid_from(self, error: InputError, field: str | None = None) -> Invalid:
        """Turns the engine's sentence into a 422, for the given field or for the input that the sentence begins
        with."""
        return invalid_from(error, self.inputs, field)


def owner_of(application_id: str) -> str:
    """`owner/family`: the part of an application's id that clients put into a request's URLs."""
    return "/".join(application_id.split("/")[:2])
