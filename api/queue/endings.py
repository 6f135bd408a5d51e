"""The ways in which requests end without a result: what is stored, and what clients are told."""

from __future__ import annotations

from typing import Any

from ...ltx.errors import InputError
from ..applications import APPLICATIONS, Application
from ..applications.inputs import Invalid
from ..database.rows import StoredRequest
from ..faults import log_unexpected, public
from ..graph import fields
from ..graph.graph import Prompt
from ..host import NodeError, Rejected

ATTEMPTS = 3  # starts of a request after which its server died
WITHOUT_MEMORY = ("out of memory", "not enough memory")
UNPROCESSABLE, MISSING_MODEL, CANCELLED, TIMED_OUT, FAILED = 422, 424, 400, 504, 500


class RequestFailed(Exception):
    """A request's end without a result. values: the columns of `StoredRequest` that say so."""

    def __init__(self, message: str, kind: str, status: int, detail: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.values = {"error": message, "error_type": kind, "error_status": status, "error_detail": detail}


class LeaseLost(Exception):
    """Another server has the request now. This one must not change it any more."""


def refused(error: Invalid) -> RequestFailed:
    return RequestFailed(str(error), "validation_error", UNPROCESSABLE, error.detail)


def missing_model(error: InputError) -> RequestFailed:
    return RequestFailed(str(error), "model_missing", MISSING_MODEL)


def cancelled() -> RequestFailed:
    return RequestFailed("The request was cancelled.", "client_cancelled", CANCELLED)


def stopped_in_comfyui() -> RequestFailed:
    return RequestFailed("Somebody stopped the request in ComfyUI.", "interrupted", CANCELLED)


def without_outputs() -> RequestFailed:
    return RequestFailed("ComfyUI ended the run without its outputs.", "internal_error", FAILED)


def disk_failed(reason: str) -> RequestFailed:
    return RequestFailed(f"This server's disk does not take the result ({reason}); make room.", "disk_failed", FAILED)


def application_of(request: StoredRequest) -> Application:
    """The request's application. Errors: RequestFailed if another version of this pack took the request."""
    application = APPLICATIONS.get(request.app)
    if application is None:
        raise RequestFailed(f"This server does not answer {request.app} any more.", "no_such_application", FAILED)
    return application


def lost() -> RequestFailed:
    message = f"The server died {ATTEMPTS} times while it had this request in hand."
    return RequestFailed(message, "server_lost", FAILED)


def broken(request: StoredRequest, error: Exception) -> RequestFailed:
    """The end because of a bug in this program. The bug is logged."""
    log_unexpected(f"request {request.id} failed", error)
    message = f"The server failed because of a bug ({type(error).__name__}); its log has the details."
    return RequestFailed(message, "internal_error", FAILED)


def late(request: StoredRequest) -> RequestFailed:
    message = f"The request did not start within {request.start_timeout:g} s."
    return RequestFailed(message, "request_timeout", TIMED_OUT)


def node_failed(error: NodeError, prompt: Prompt, application: Application) -> RequestFailed:
    """The end of a run in which a node raised an error. A mistake that is about no input of the request is the
    server's: a damaged checkpoint, for instance, or a full disk."""
    message = fields.in_request_words(prompt, error.message)
    if error.kind.endswith((".InputError", ".FlaggedError")):
        field = fields.field_told(prompt, error.node_id, error.message)
        invalid = application.invalid_from(InputError(message), field)
        has_field = len(invalid.detail[0]["loc"]) > 1
        if has_field or error.kind.endswith(".FlaggedError"):
            return refused(invalid)
    node = prompt.get(error.node_id, {}).get("_meta", {}).get("title", error.node_id)
    memory = "OutOfMemory" in error.kind or any(words in message.lower() for words in WITHOUT_MEMORY)
    kind = "out_of_memory" if memory else "node_error"
    return RequestFailed(public(f"{node}: {message}"), kind, FAILED)


def graph_rejected(error: Rejected, prompt: Prompt, application: Application) -> RequestFailed:
    """The end of a request whose graph ComfyUI does not take."""
    node, message = next(iter(error.errors.items()))
    field = fields.field_of(prompt, node)
    if field:
        return refused(application.invalid_from(InputError(fields.in_request_words(prompt, message)), field))
    return RequestFailed(public(fields.in_request_words(prompt, str(error))), "graph_rejected", FAILED)
