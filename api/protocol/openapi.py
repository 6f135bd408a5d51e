"""The OpenAPI document: the operations that are registered, and the models that check what they take and give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from ..applications import inputs as schema
from ..settings import Settings

if TYPE_CHECKING:
    from .queue import Operation

MODELS = (
    schema.Input,
    schema.Output,
    schema.Submitted,
    schema.Status,
    schema.Cancelled,
    schema.ValidationProblem,
    schema.Failure,
)
REQUEST_ID = {"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}
LOGS = {"name": "logs", "in": "query", "schema": {"type": "string", "enum": ["0", "1", "true", "false"]}}
WEBHOOK = {"name": "fal_webhook", "in": "query", "schema": {"type": "string", "format": "uri"}}
SUBMIT_HEADERS = [
    {
        "name": "X-Fal-Queue-Priority",
        "in": "header",
        "description": "Low ones wait for all others.",
        "schema": {"type": "string", "enum": ["normal", "low"]},
    },
    {
        "name": "X-Fal-Request-Timeout",
        "in": "header",
        "description": "Seconds within which the request must start.",
        "schema": {"type": "number", "exclusiveMinimum": 0.1, "maximum": 1e9},
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A retry under the same key is the same request.",
        "schema": {"type": "string", "maxLength": 255},
    },
]


def _answer(text: str, model: type | None = None, kind: str = "application/json") -> dict[str, Any]:
    if model is None:
        return {"description": text, "content": {kind: {}}}
    return {"description": text, "content": {kind: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}}


_UNKEYED = {"401": _answer("The key is missing or wrong.", schema.Failure)}
_NO_SUCH = {"404": _answer("There is no such request.", schema.Failure)}
_BAD_BODY = {
    "400": _answer("The request is broken.", schema.Failure),
    "413": _answer("The body is too large.", schema.Failure),
    "415": _answer("The body is not announced as JSON.", schema.Failure),
    "422": _answer("An input is missing or wrong.", schema.ValidationProblem),
    "424": _answer("A model file is not installed.", schema.Failure),
}
_ENDED_BADLY = {
    "400": _answer("It was cancelled, or has not ended yet.", schema.Failure),
    "410": _answer("The result was deleted.", schema.Failure),
    "422": _answer("An input turned out wrong.", schema.ValidationProblem),
    "424": _answer("A model file is not installed.", schema.Failure),
    "500": _answer("It failed.", schema.Failure),
    "504": _answer("It did not start in time.", schema.Failure),
}
_ANSWERS: dict[str, dict[str, Any]] = {
    "submit": {"200": _answer("It is in the queue.", schema.Submitted), **_BAD_BODY},
    "run": {"200": _answer("The result.", schema.Output), **_ENDED_BADLY, **_BAD_BODY},
    "status": {
        "200": _answer("It has ended.", schema.Status),
        "202": _answer("It waits or runs.", schema.Status),
        **_NO_SUCH,
    },
    "stream": {"200": _answer("A Status in each event.", None, "text/event-stream"), **_NO_SUCH},
    "result": {"200": _answer("The result.", schema.Output), **_ENDED_BADLY, **_NO_SUCH},
    "cancel": {
        "202": _answer("It is being ended.", schema.Cancelled),
        "400": _answer("It had ended.", schema.Cancelled),
        "404": _answer("There is no such request.", schema.Cancelled),
    },
    "workflow": {"200": _answer("Nodes by their ids."), **_NO_SUCH},
    "describe": {"200": _answer("An OpenAPI document.")},
}


_FILE_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}}
_FILE_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_MULTIPART = {**_FILE_ID, "name": "multipart"}
_NUMBER = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}
_TOKEN = {"name": "token", "in": "query", "schema": {"type": "string"}}
_TARGET = {"name": "x-fal-target-url", "in": "header", "required": True, "schema": {"type": "string", "format": "uri"}}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_ANNOUNCED: dict[str, Any] = {
    "application/json": {
        "schema": {
            "type": "object",
            "properties": {"file_name": {"type": "string"}, "content_type": {"type": "string"}},
        }
    }
}
_NO_BODY: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
_PARTS: dict[str, Any] = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["parts"],
            "properties": {
                "parts": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["partNumber", "etag"],
                        "properties": {"partNumber": {"type": "integer"}, "etag": {"type": "string"}},
                    },
                }
            },
        }
    }
}
_UPLOAD_ANSWERS = {
    "200": _answer("Done."),
    "400": _answer("The request is broken.", schema.Failure),
    "401": _answer("The key or the upload's token is missing or wrong.", schema.Failure),
    "404": _answer("The address is of no upload.", schema.Failure),
    "409": _answer("This file is uploaded in parts.", schema.Failure),
    "410": _answer("This upload is complete.", schema.Failure),
    "413": _answer("The file is too large.", schema.Failure),
    "415": _answer("The body is not announced as JSON.", schema.Failure),
    "422": _answer("Something about the upload is wrong.", schema.Failure),
}
_FILE_ANSWERS = {
    "200": _answer("The file.", None, "application/octet-stream"),
    "206": _answer("A range of it.", None, "application/octet-stream"),
    "404": _answer("There is none.", schema.Failure),
    "416": _answer("It has no such range.", None, "text/plain"),
}
_ONE = "/cdn/files/{id}/{name}"
# method, path, name, summary, parameters, body, answers: what other files of the API serve
OTHERS: tuple[tuple[str, str, str, str, list[Any], Any, dict[str, Any]], ...] = (
    ("POST", "/rest/storage/upload/initiate", "initiate", "Announces an upload.", [], _ANNOUNCED, _UPLOAD_ANSWERS),
    ("POST", "/rest/storage/upload/initiate-multipart", "initiateMultipart", "Announces an upload in parts.", [],
     _ANNOUNCED, _UPLOAD_ANSWERS),
    ("POST", "/rest/storage/auth/token", "token", "A token for uploads, for an hour.", [], _NO_BODY, _UPLOAD_ANSWERS),
    ("POST", "/cdn/files/upload", "upload", "A whole file.", [], _BYTES, _UPLOAD_ANSWERS),
    ("POST", "/cdn/files/upload/multipart", "uploadMultipart", "Begins an upload in parts.", [], None,
     _UPLOAD_ANSWERS),
    ("PUT", _ONE, "put", "The bytes of an announced upload.", [_FILE_ID, _FILE_NAME, _TOKEN], _BYTES, _UPLOAD_ANSWERS),
    ("GET", _ONE, "get", "An uploaded file.", [_FILE_ID, _FILE_NAME], None, _FILE_ANSWERS),
    ("PUT", _ONE + "/multipart/{multipart}/{number}", "putPart", "A part.",
     [_FILE_ID, _FILE_NAME, _MULTIPART, _NUMBER, _TOKEN], _BYTES, _UPLOAD_ANSWERS),
    ("POST", _ONE + "/multipart/{multipart}/complete", "complete", "Ends an upload in parts.",
     [_FILE_ID, _FILE_NAME, _MULTIPART, _TOKEN], _PARTS, _UPLOAD_ANSWERS),
    ("GET", "/cdn/results/{name}", "resultFile", "A result's file.", [_FILE_NAME], None, _FILE_ANSWERS),
    ("GET", "/rest/.well-known/jwks.json", "jwks", "The key that signs webhooks.", [], None,
     {"200": _answer("A JSON Web Key Set.")}),
    *(
        (method, "/proxy", f"proxy{method.title()}", "What the header's URL of the hosted endpoint means, done here.",
         [_TARGET], None, {
             "200": _answer("As the target answers."),
             "403": _answer("The URL is none of this endpoint's.", schema.Failure),
             "default": _answer("As the target answers."),
         })
        for method in ("GET", "POST", "PUT")
    ),
)  # fmt: skip


def document(operations: Iterable[Operation], settings: Settings) -> dict[str, Any]:
    """OpenAPI 3.1."""
    _, models = models_json_schema(
        [(model, "validation") for model in MODELS], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        name = operation.handler.__name__
        answers = _ANSWERS[name]
        described: dict[str, Any] = {
            "operationId": name,
            "summary": operation.summary,
            "responses": answers if operation.open else {**answers, **_UNKEYED},
        }
        parameters = [REQUEST_ID] if "{request_id}" in operation.path else []
        if name in ("status", "stream"):
            parameters = [*parameters, LOGS]
        if name in ("submit", "run"):
            parameters = [*SUBMIT_HEADERS, *([WEBHOOK] if name == "submit" else [])]
            content = {"application/json": {"schema": {"$ref": "#/components/schemas/Input"}}}
            described["requestBody"] = {"required": True, "content": content}
        if parameters:
            described["parameters"] = parameters
        if not operation.open and settings.key:
            described["security"] = [{"key": []}]
        paths.setdefault(settings.prefix + operation.path, {})[operation.method.lower()] = described
    for method, path, name, summary, parameters, content, answers in OTHERS:
        described = {"operationId": name, "summary": summary, "parameters": parameters, "responses": answers}
        if content:
            described["requestBody"] = {"required": True, "content": content}
        paths.setdefault(settings.prefix + path, {})[method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "LTX audio to video", "version": "1.0.0", "description": "The hosted protocol, locally."},
        "paths": paths,
        "components": {
            "schemas": models.get("$defs", {}),
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Key …"}
            },
        },
    }
