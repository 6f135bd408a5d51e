"""What an application is: its name in URLs, its inputs, and how a request to it becomes a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ...ltx.errors import InputError
from ..graph.graph import Prompt
from ..graph.model_files import Listing
from .inputs import CheckedRequest, Invalid, Kind, check, invalid_from


@dataclass(frozen=True)
class Application:
    """id: as the hosted service names it, `owner/family/…`. inputs: the model that checks a body. files: those of its
    inputs that are files, and what each must hold.

    find_models: ComfyUI's listings of files and of folders → the names of the models that the graph loads; raises
    ModelMissing. compose: (the engine's request, these names, field → name in the input folder, the prefix of the file
    that is written, ComfyUI's folder for it) → the graph; raises InputError.
    """

    id: str
    inputs: type[BaseModel]
    files: Mapping[str, Kind]
    find_models: Callable[[Listing, Listing], Any]
    compose: Callable[..., Prompt]

    @property
    def owner(self) -> str:
        return owner_of(self.id)

    def check(self, body: Any) -> CheckedRequest:
        """Errors: Invalid."""
        return check(body, self.inputs, self.files)

    def invalid_from(self, error: InputError, field: str | None = None) -> Invalid:
        """The engine's sentence as a 422: on the field given, or on the input that the sentence begins with."""
        return invalid_from(error, self.inputs, field)


def owner_of(application_id: str) -> str:
    """`owner/family`, the part of an application's id that clients put into a request's URLs."""
    return "/".join(application_id.split("/")[:2])
