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
