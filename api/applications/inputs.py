"""Checks the inputs of an application as clients send them, and words mistakes as clients expect them.

The model of the inputs is built from the engine's one table of parameters, which has their ranges, choices and
defaults. This file adds what only the hosted endpoint has: files, delivery, and another name of the size. OpenAPI
describes the same models.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    create_model,
)

from ...ltx.characters import is_whole
from ...ltx.errors import InputError
from ...ltx.nag import RANGES, Nag
from ...ltx.request import OF_VIDEOS, PARAMETERS, SIDE, Parameter, Request, parse
from ...ltx.windows import LONGEST, MOST_OVERLAP, SHORTEST, WindowSize

Detail = list[dict[str, Any]]
SIZE, SIZE_ALIAS, SYNC_MODE, LORAS = "video_size", "image_size", "sync_mode", "loras"
MOST_LORAS = 16
NO_DEFAULTS: Mapping[str, Any] = MappingProxyType({})
HALF_TEXT = "The body has half of a character (a lone surrogate) in a text; write it whole or remove it."
STRANGERS = 20  # unknown names that get a sentence each


class Invalid(Exception):
    """The body of a 422: a request that cannot be served as it is."""

    def __init__(self, detail: Detail) -> None:
        super().__init__("; ".join(str(part["msg"]) for part in detail))
        self.detail = detail


def problem(field: str | None, message: str, kind: str = "value_error", where: str = "body") -> dict[str, Any]:
    return {"loc": [where, *([field] if field else [])], "msg": message, "type": kind}


_side = PARAMETERS[SIZE]


class ImageSize(BaseModel):
    """A size in pixels. A missing side is 512."""

    width: int = Field(SIDE, ge=_side.minimum, le=_side.maximum, description="The width of the video.")
    height: int = Field(SIDE, ge=_side.minimum, le=_side.maximum, description="The height of the video.")


USUAL = WindowSize()


def _share(default: float, description: str) -> Any:
    return Field(default, ge=0, le=1, description=description)


class WindowSettings(BaseModel):
    """The windows of a film that is as long as its sound. The hosted endpoint has no such input."""

    model_config = ConfigDict(extra="forbid")

    frames: int = Field(
        USUAL.frames, ge=SHORTEST, le=LONGEST, description="Frames of a window, one more than a multiple of 8."
    )
    overlap: int = Field(
        USUAL.overlap, ge=1, le=MOST_OVERLAP, description="Latents of eight frames that two windows share."
    )
    pauses: bool = Field(USUAL.pauses, description="Whether windows end at pauses of the sound.")
    anchor: float = _share(USUAL.anchor, "How firmly windows are held to their section's first frame.")
    drift: float = _share(USUAL.drift, "The share by which windows are pulled to the first one, where they are alike.")
    seeds: dict[str, int] = Field({}, description="Seeds for single windows, by their numbers from 1.")


LED = Nag()


def _within(name: str, description: str) -> Any:
    low, high = RANGES[name]
    return Field(getattr(LED, name), ge=low, le=high, allow_inf_nan=False, description=description)


class NagSettings(BaseModel):
    """How far attention to the prompt is led away from the negative prompt. The hosted endpoint has no such input."""

    model_config = ConfigDict(extra="forbid")

    scale: float = _within("scale", "How far it is led away; 1 is neutral.")
    alpha: float = _within("alpha", "The share of the led result; the rest is the prompt alone.")
    tau: float = _within("tau", "The most by which a token may grow.")


NAME_TAG, SIZE_TAG = "a name", "width and height"
SWITCH_TAG, SETTINGS_TAG = "a switch", "settings"
SETTINGS: Mapping[str, type[BaseModel]] = {"windows": WindowSettings, "nag": NagSettings}
"""The kinds of parameters that are a switch or an object with settings."""


def _kind_of_size(value: object) -> str:
    return SIZE_TAG if isinstance(value, (Mapping, ImageSize)) else NAME_TAG


def _kind_of_settings(value: object) -> str:
    return SETTINGS_TAG if isinstance(value, (Mapping, *SETTINGS.values())) else SWITCH_TAG


def _type(parameter: Parameter) -> Any:
    if parameter.kind in SETTINGS:
        return Annotated[
            Annotated[bool, Tag(SWITCH_TAG)] | Annotated[SETTINGS[parameter.kind], Tag(SETTINGS_TAG)],
            Discriminator(_kind_of_settings),
        ]
    if parameter.kind == "choice":
        return Literal[parameter.choices]
    if parameter.kind == "size":
        names = Literal[parameter.choices]
        return Annotated[
            Annotated[names, Tag(NAME_TAG)] | Annotated[ImageSize, Tag(SIZE_TAG)], Discriminator(_kind_of_size)
        ]
    plain = {"text": str, "integer": int, "seed": int, "number": float, "switch": bool}[parameter.kind]
    return plain


def _field(name: str, parameter: Parameter) -> tuple[Any, Any]:
    options: dict[str, Any] = {"description": parameter.help}
    kind = _type(parameter)
    if parameter.kind in ("integer", "number"):
        options |= {"ge": parameter.minimum, "le": parameter.maximum}
    if parameter.kind == "number":
        options["allow_inf_nan"] = False
    if name == "prompt":
        return kind, Field(..., **options)
    optional = parameter.default is None
    return (kind | None if optional else kind), Field(parameter.default, **options)


class _Base(BaseModel):
    # The hosted endpoint ignores names that it does not know.
    model_config = ConfigDict(extra="ignore", validate_default=False)


_url = {"type": "string", "format": "uri-reference"}


def required_file(description: str) -> tuple[Any, Any]:
    """A field of `input_model` for a file that every request must have."""
    return Annotated[str, WithJsonSchema(_url)], Field(..., min_length=1, description=description)


def optional_file(description: str) -> tuple[Any, Any]:
    return Annotated[str, WithJsonSchema(_url)] | None, Field(None, description=description)


class LoRAInput(BaseModel):  # the name on the endpoint's page
    """A LoRA and its strength."""

    path: str = Field(
        min_length=1,
        max_length=2000,
        description="The name of a file in this server's models/loras. Of a URL or a repository's name the last part "
        "is taken for the file's name; nothing is downloaded.",
    )
    scale: float = Field(1.0, ge=0, le=4, allow_inf_nan=False, description="The strength of the LoRA in both stages.")
    weight_name: str | None = Field(
        None, max_length=2000, description="The name of the file, if path is the name of a repository."
    )

    @property
    def named(self) -> str:
        """What says the file's name."""
        return self.weight_name or self.path


def lora_list() -> tuple[Any, Any]:
    """A field of `input_model` for LoRAs that the client chooses."""
    return list[LoRAInput], Field(..., max_length=MOST_LORAS, description="The LoRAs, in the order of their merging.")


OFFERED = tuple(name for name in PARAMETERS if name not in OF_VIDEOS)
"""The parameters that requests may have; an application that takes a video sets the others itself."""


def input_model(
    name: str,
    description: str,
    fields: Mapping[str, Any],
    parameters: Collection[str] = OFFERED,
    defaults: Mapping[str, Any] = NO_DEFAULTS,
) -> type[BaseModel]:
    """Builds the model of an application's inputs: its own fields, the engine's parameters, and options of delivery.

    defaults: of parameters whose default is another one than the engine's. The application's `translate` must give them
    to the engine.
    """
    engine = {
        name: _field(name, replace(parameter, default=defaults.get(name, parameter.default)))
        for name, parameter in PARAMETERS.items()
        if name in parameters
    }
    delivery = {
        SIZE_ALIAS: (_type(_side) | None, Field(None, description=f"Another name of {SIZE}; give one of the two.")),
        SYNC_MODE: (bool, Field(False, description="The video as a data URI in the result, kept nowhere else.")),
    }
    return own_model(name, description, {**fields, **engine, **delivery})


def own_model(name: str, description: str, fields: Mapping[str, Any]) -> type[BaseModel]:
    """Builds the model of the inputs of an application that has no inputs but its own."""
    return create_model(name, __base__=_Base, __doc__=description, **fields)


@dataclass(frozen=True)
class CheckedRequest:
    """A request that passed all checks.

    request: its form for the engine. files: field → URL or data URI, for the given ones. loras: path and strength of
    each. arguments: what is stored: as they were sent, without unknown names, with the seed. own: the inputs that the
    engine does not have, with their defaults, but for files, LoRAs and delivery.
    """

    request: Request
    files: dict[str, str]
    sync_mode: bool
    arguments: dict[str, Any]
    notes: tuple[str, ...] = ()
    loras: tuple[tuple[str, float], ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)


def read_json(body: bytes) -> Any:
    """Parses a JSON text. Errors: Invalid if it is no JSON or has half a surrogate pair, which is no text."""
    try:
        value = json.loads(body, parse_constant=_no_constant)
        whole = is_whole(value)
    except (ValueError, RecursionError) as error:
        raise Invalid([problem(None, f"The body is not JSON: {error}.", "json_invalid")]) from None
    if not whole:
        raise Invalid([problem(None, HALF_TEXT, "json_invalid")])
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def digest(value: Any) -> str:
    """A hash that is equal for JSON values of equal meaning."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


Translate = Callable[[Mapping[str, Any], Collection[str]], tuple[Mapping[str, Any], Sequence[str]]]
"""Takes the inputs that were sent, without files, and the names of the files; returns the engine's parameters and notes
for the log. Errors: InputError."""


def as_it_is(values: Mapping[str, Any], files: Collection[str]) -> tuple[Mapping[str, Any], Sequence[str]]:
    """The `Translate` of inputs that are the engine's parameters."""
    return values, ()


def check(
    body: Any,
    model: type[BaseModel],
    files: Iterable[str],
    fixed: Mapping[str, Any],
    translate: Translate = as_it_is,
) -> CheckedRequest:
    """Checks a JSON body by the model of an application's inputs. files: the inputs that are files. fixed: values that
    the application sets itself. translate: see `Translate`.

    Errors: Invalid, which lists everything that is wrong.
    """
    if not isinstance(body, Mapping):
        raise Invalid([problem(None, "The body must be a JSON object with the request's inputs.", "model_type")])
    if body.get(SIZE_ALIAS) is not None and body.get(SIZE, "") is None:  # null beside the other name is no size
        body = {name: value for name, value in body.items() if name != SIZE}
    try:
        checked = model.model_validate(body)
    except ValidationError as error:
        raise Invalid([_detail(part) for part in error.errors(include_url=False, include_input=False)]) from None
    sent = checked.model_dump(exclude_unset=True)
    values = {name: value for name, value in sent.items() if value is not None}  # null is as good as absent
    if values.get(SIZE_ALIAS) is not None:
        if values.get(SIZE) is not None:
            raise Invalid([problem(name, f"give {SIZE} or {SIZE_ALIAS}, not both.") for name in (SIZE, SIZE_ALIAS)])
        values[SIZE] = values[SIZE_ALIAS]
    values.pop(SIZE_ALIAS, None)
    given = {name: values.pop(name, None) for name in files}
    given = {name: value for name, value in given.items() if value}
    sync_mode = values.pop(SYNC_MODE, False)
    chosen = {LORAS: values.pop(LORAS)} if LORAS in values else {}
    loras = tuple((lora.named, lora.scale) for lora in getattr(checked, LORAS, ()))
    try:
        parameters, said = translate(values, given.keys())
        request = parse({**parameters, **fixed})
    except InputError as error:
        raise invalid_from(str(error), model) from None
    arguments = {**given, **chosen, **values, "seed": request.seed, **({SYNC_MODE: True} if sync_mode else {})}
    ignored = [f"{name} does nothing here, it is always {fixed[name]}" for name in values.keys() & fixed.keys()]
    notes = (*_strangers(body, model), *ignored, *said, *request.notes)
    others = model.model_fields.keys() - {*PARAMETERS, *files, SIZE_ALIAS, SYNC_MODE, LORAS}
    own = {name: getattr(checked, name) for name in sorted(others)}
    return CheckedRequest(request, given, sync_mode, arguments, notes, loras, own)


def invalid_from(text: str, model: type[BaseModel], field: str | None = None) -> Invalid:
    """Turns the engine's sentence into a 422, for the given field or for the input that the sentence begins with."""
    named = field or text.split(":")[0].split(".")[0]
    return Invalid([problem(named if named in model.model_fields else None, text)])


def _strangers(body: Mapping[str, Any], model: type[BaseModel]) -> list[str]:
    """Sentences about names that no input has. The API ignores such names, as the hosted endpoint does.

    At most STRANGERS of them are named: a body may hold very many, and the search for similar names takes 0.1 ms each.
    """
    said, names = [], sorted(body.keys() - model.model_fields.keys())
    for name in names[:STRANGERS]:
        near = difflib.get_close_matches(name[:80], model.model_fields, 1)
        said.append(f"{name[:80]!r} is no input and was passed over" + (f"; did you mean {near[0]}?" if near else ""))
    if more := len(names) - len(said):
        said.append(f"{more} more names are no inputs and were passed over")
    return said


def _detail(error: Mapping[str, Any]) -> dict[str, Any]:
    """One of pydantic's errors in FastAPI's form, without the parts of the place that a union's branches add."""
    place = [part for part in error["loc"] if part not in (NAME_TAG, SIZE_TAG, SWITCH_TAG, SETTINGS_TAG)]
    found = {"loc": ["body", *place], "msg": error["msg"], "type": error["type"]}
    context = {key: value for key, value in error.get("ctx", {}).items() if isinstance(value, (str, int, float))}
    return {**found, "ctx": context} if context else found
