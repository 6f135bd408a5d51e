"""The request as the endpoint takes it, and the errors as its clients read them. Ranges come from ltx/request.py.

`Input` is built from the one table of parameters; what the page has beyond that table (files, delivery, the older name
of video_size) is added here. OpenAPI describes the same models.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
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

from ...ltx.errors import InputError
from ...ltx.request import PARAMETERS, SIDE, Parameter, Request, parse

Detail = list[dict[str, Any]]
ALIAS, SIZE = "image_size", "video_size"
MEDIA = {"audio_url": "audio", "image_url": "image", "end_image_url": "image"}
DELIVERY = ("sync_mode",)
STRANGERS = 20


class Invalid(Exception):
    """A request that cannot be served as it is: the body of a 422."""

    def __init__(self, detail: Detail) -> None:
        super().__init__("; ".join(str(part["msg"]) for part in detail))
        self.detail = detail


def problem(field: str | None, message: str, kind: str = "value_error", where: str = "body") -> dict[str, Any]:
    return {"loc": [where, *([field] if field else [])], "msg": message, "type": kind}


def invalid_from(error: InputError, field: str | None = None) -> Invalid:
    """The engine's sentence as a 422: on the field given, or on the one that it begins with."""
    text = str(error)
    named = text.split(":")[0].split(".")[0]
    known = field or (named if named in PARAMETERS or named in MEDIA or named == "sync_mode" else None)
    return Invalid([problem(known, text)])


_side = PARAMETERS[SIZE]


class ImageSize(BaseModel):
    """Pixels; a side that is left out is 512."""

    width: int = Field(SIDE, ge=_side.minimum, le=_side.maximum, description="The width of the video.")
    height: int = Field(SIDE, ge=_side.minimum, le=_side.maximum, description="The height of the video.")


NAME_TAG, SIZE_TAG = "a name", "width and height"


def _kind_of_size(value: object) -> str:
    return SIZE_TAG if isinstance(value, (Mapping, ImageSize)) else NAME_TAG


def _type(parameter: Parameter) -> Any:
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
    # what the hosted endpoint does with names it does not know: nothing
    model_config = ConfigDict(extra="ignore", validate_default=False)


_url = {"type": "string", "format": "uri-reference"}
_files: dict[str, Any] = {
    "audio_url": (
        Annotated[str, WithJsonSchema(_url)],
        Field(..., min_length=1, description="The sound: a URL, a data URI or an uploaded file's URL."),
    ),
    "image_url": (Annotated[str, WithJsonSchema(_url)] | None, Field(None, description="The first frame.")),
    "end_image_url": (Annotated[str, WithJsonSchema(_url)] | None, Field(None, description="The last frame.")),
}
Input = create_model(
    "Input",
    __base__=_Base,
    __doc__="Generate a video from audio and a prompt, with images if any.",
    **_files,
    **{name: _field(name, parameter) for name, parameter in PARAMETERS.items()},
    image_size=(_type(_side) | None, Field(None, description=f"Another name of {SIZE}; give one of the two.")),
    sync_mode=(bool, Field(False, description="The video as a data URI in the result, kept nowhere after that.")),
)


class VideoFile(BaseModel):
    """The file, and what is in it."""

    url: str
    content_type: str
    file_name: str
    file_size: int
    width: int
    height: int
    fps: float
    duration: float
    num_frames: int


class Output(BaseModel):
    """What a request ends with."""

    video: VideoFile
    seed: int = Field(description="The seed that was used.")
    prompt: str = Field(description="The prompt that was used, after its expansion.")


class LogLine(BaseModel):
    message: str
    level: Literal["STDERR", "STDOUT", "ERROR", "INFO", "WARN", "DEBUG"]
    source: Literal["USER"]
    timestamp: str = Field(json_schema_extra={"format": "date-time"})


class Submitted(BaseModel):
    """Where the request can be asked after."""

    request_id: str
    gateway_request_id: str
    response_url: str
    status_url: str
    cancel_url: str
    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    queue_position: int


class Status(BaseModel):
    """Where the request stands. queue_position while it waits; logs after that, where they were asked for."""

    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    request_id: str
    gateway_request_id: str
    response_url: str
    status_url: str
    cancel_url: str
    queue_position: int | None = None
    logs: list[LogLine] | None = None
    metrics: dict[str, float] | None = None
    error: str | None = None
    error_type: str | None = None


class Cancelled(BaseModel):
    status: Literal["CANCELLATION_REQUESTED", "ALREADY_COMPLETED", "NOT_FOUND"]


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    loc: list[str | int]
    msg: str
    type: str
    ctx: dict[str, Any] | None = None


class ValidationProblem(BaseModel):
    detail: list[Problem]


class Failure(BaseModel):
    detail: str
    error_type: str | None = None


@dataclass(frozen=True)
class Job:
    """A request that passed: the engine's form of it, and what is only the API's."""

    request: Request
    media: dict[str, str]  # field → URL, of those given
    sync_mode: bool
    arguments: dict[str, Any]  # to be stored: as sent, without what is unknown, with the seed
    notes: tuple[str, ...] = ()


def read_json(body: bytes) -> Any:
    """The value of a JSON text. Errors: Invalid where it is none, or has what no text may have."""
    try:
        value = json.loads(body, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise Invalid([problem(None, f"The body is not JSON: {error}.", "json_invalid")]) from None
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def digest(value: Any) -> str:
    """The same for two JSON values that mean the same."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check(body: Any) -> Job:
    """A JSON body → the job. Errors: Invalid, with all that is wrong with it."""
    if not isinstance(body, Mapping):
        raise Invalid([problem(None, "The body must be a JSON object with the request's inputs.", "model_type")])
    try:
        model = Input.model_validate(body)
    except ValidationError as error:
        raise Invalid([_detail(part) for part in error.errors(include_url=False, include_input=False)]) from None
    values = model.model_dump(exclude_unset=True)
    if values.get(ALIAS) is not None:
        if values.get(SIZE) is not None:
            raise Invalid([problem(name, f"give {SIZE} or {ALIAS}, not both.") for name in (SIZE, ALIAS)])
        values[SIZE] = values[ALIAS]
    values.pop(ALIAS, None)
    media = {name: values.pop(name) for name in MEDIA if values.get(name)}
    for name in MEDIA:
        values.pop(name, None)
    sync_mode = values.pop("sync_mode", False)
    try:
        request = parse(values)
    except InputError as error:
        raise invalid_from(error) from None
    arguments = {**media, **values, "seed": request.seed, **({"sync_mode": True} if sync_mode else {})}
    return Job(request, media, sync_mode, arguments, (*_strangers(body), *request.notes))


def _strangers(body: Mapping[str, Any]) -> list[str]:
    """What is said of names that no input has. They are passed over, as the hosted endpoint does.

    Of STRANGERS of them: a body holds millions, and looking for near names takes 0.1 ms each.
    """
    said, names = [], sorted(body.keys() - Input.model_fields.keys())
    for name in names[:STRANGERS]:
        near = difflib.get_close_matches(name[:80], Input.model_fields, 1)
        said.append(f"{name[:80]!r} is no input and was passed over" + (f"; did you mean {near[0]}?" if near else ""))
    if more := len(names) - len(said):
        said.append(f"{more} more names are no inputs and were passed over")
    return said


def _detail(error: Mapping[str, Any]) -> dict[str, Any]:
    """One of pydantic's errors as FastAPI writes it, without what a union's branches add to the place."""
    place = [part for part in error["loc"] if part not in (NAME_TAG, SIZE_TAG)]
    found = {"loc": ["body", *place], "msg": error["msg"], "type": error["type"]}
    context = {key: value for key, value in error.get("ctx", {}).items() if isinstance(value, (str, int, float))}
    return {**found, "ctx": context} if context else found
