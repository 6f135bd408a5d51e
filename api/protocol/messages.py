"""The models of the protocol's answers, for the OpenAPI document. Results are in ../applications/outputs.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class LogLine(BaseModel):
    message: str
    level: Literal["STDERR", "STDOUT", "ERROR", "INFO", "WARN", "DEBUG"]
    source: Literal["USER"]
    timestamp: str = Field(json_schema_extra={"format": "date-time"})


class Submitted(BaseModel):
    """The addresses of a submitted request."""

    request_id: str
    gateway_request_id: str
    response_url: str
    status_url: str
    cancel_url: str
    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    queue_position: int


class Status(BaseModel):
    """A request's state. queue_position: while it waits; logs: if they were asked for."""

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


class Announced(BaseModel):
    """A file that a client will send."""

    file_name: str | None = Field(None, description="The last part of the file's address.")
    content_type: str | None = Field(None, description="The type with which the file is served.")


class UploadAddresses(BaseModel):
    """Where to send an announced file, and where it can be read afterwards. The first address has its token."""

    upload_url: str
    file_url: str


class UploadPermit(BaseModel):
    """A token for uploads below `base_url`, for the header Authorization."""

    token: str
    token_type: Literal["Bearer"]
    base_url: str
    expires_at: str = Field(json_schema_extra={"format": "date-time"})


class Uploaded(BaseModel):
    """The address of a whole file, twice: each client reads its own name of it."""

    access_url: str
    file_url: str


class UploadBegun(BaseModel):
    """An upload in parts. They go to `access_url`/multipart/`uploadId`/1 and so on."""

    access_url: str
    uploadId: str


class WholePart(BaseModel):
    """A whole part of an upload."""

    partNumber: int
    etag: str


class PartsList(BaseModel):
    """The parts that make the file."""

    parts: list[WholePart]


class PublicKey(BaseModel):
    """An Ed25519 key as RFC 8037 writes it. x: its bytes in base64url."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    use: Literal["sig"]
    alg: Literal["EdDSA"]
    kid: str
    x: str


class PublicKeys(BaseModel):
    """A JSON Web Key Set (RFC 7517)."""

    keys: list[PublicKey]


class Problem(BaseModel):
    """One mistake in a request."""

    loc: list[str | int]
    msg: str
    type: str
    ctx: dict[str, Any] | None = None


class ValidationProblem(BaseModel):
    """All mistakes in a request's inputs. error_type: if the request was in the queue when they were found."""

    detail: list[Problem]
    error_type: str | None = None


class PlainProblem(BaseModel):
    """Why there is no result, in one sentence."""

    detail: str
    error_type: str | None = None
