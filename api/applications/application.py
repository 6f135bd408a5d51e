"""What an application is: its name in URLs, its inputs, the way from a request to a graph, and its results."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ...ltx.errors import InputError
from ..faults import public
from ..files.looks import Kind
from ..graph.graph import Prompt
from ..graph.model_files import Listing
from ..settings import Settings
from .inputs import CheckedRequest, Invalid, Translate, as_it_is, check, invalid_from
from .outputs import Output


def _any_file(field: str, path: Path) -> None:
    """The `check_file` of an application that takes every file of the right kind."""


def _settled(checked: CheckedRequest, paths: Mapping[str, Path], settings: Settings) -> CheckedRequest:
    """The `settle` of an application whose inputs say everything."""
    return checked


@dataclass(frozen=True)
class Application:
    """id: `owner/family/…`, as the hosted service names it. inputs: the model that checks a body. files: the inputs
    that are files, and the kind of each.

    find_models: takes ComfyUI's listings of files and of folders and returns the names of the models that the graph
    loads; raises ModelMissing. compose: takes the checked request, these names, field → name in the input folder, and
    the prefix of the output file; returns the graph; raises InputError.

    fixed: parameters that the application sets itself. translate: turns its inputs into the engine's parameters.
    check_file: takes the field and the path of a file that has arrived; raises InputError if it does not fit. settle:
    takes the checked request, field → path, and the administrator's settings, when all files are there; returns the
    request with what only they tell; raises InputError. output: the model of its results.
    """

    id: str
    inputs: type[BaseModel]
    files: Mapping[str, Kind]
    find_models: Callable[[Listing, Listing], Any]
    compose: Callable[..., Prompt]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    translate: Translate = as_it_is
    check_file: Callable[[str, Path], None] = _any_file
    settle: Callable[[CheckedRequest, Mapping[str, Path], Settings], CheckedRequest] = _settled
    output: type[BaseModel] = Output

    @property
    def owner(self) -> str:
        return owner_of(self.id)

    def check(self, body: Any) -> CheckedRequest:
        """Checks a body. Errors: Invalid."""
        return check(body, self.inputs, self.files, self.fixed, self.translate)

    def invalid_from(self, error: InputError, field: str | None = None) -> Invalid:
        """Turns the engine's sentence into a 422, for the given field or for the input that the sentence begins
        with. Clients do not see where this server's files lie."""
        return invalid_from(public(str(error)), self.inputs, field)

    def result(self, whole: Mapping[str, Any]) -> dict[str, Any]:
        """What clients get of a result: the fields of `output`. The video's URL is not in it yet."""
        return _fields_of(self.output, whole)


def _fields_of(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _fields_of(model.model_fields[name].annotation, value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if name in model.model_fields
    }


def owner_of(application_id: str) -> str:
    """`owner/family`: the part of an application's id that clients put into a request's URLs."""
    return "/".join(application_id.split("/")[:2])


def operation_name(verb: str, application_id: str) -> str:
    """An operation's name in the OpenAPI document, which is unique: `submit_fal_ai_ltx_2_3_22b_audio_to_video`."""
    return "_".join([verb, *re.findall(r"\w+", application_id)])
