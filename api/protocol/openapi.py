"""The OpenAPI document, made of the registered operations and of the models that check inputs and answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..settings import Settings
from .messages import PlainProblem
from .operations import Answer, Body, Operation, RouteParameter

REFERENCE = "#/components/schemas/{model}"
FOR_ALL = {
    401: Answer("The key is missing or wrong.", PlainProblem),
    403: Answer("A page of another origin asks.", PlainProblem),
}
"""Answers of every guarded route."""


def document(operations: Iterable[Operation], settings: Settings) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    operations = list(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = _operation(operation, settings)
        paths.setdefault(settings.prefix + operation.plain_path, {})[operation.method.lower()] = described
    _, models = models_json_schema([(model, "validation") for model in _models(operations)], ref_template=REFERENCE)
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


def _models(operations: Iterable[Operation]) -> list[type[BaseModel]]:
    found: dict[type[BaseModel], None] = {PlainProblem: None}
    for operation in operations:
        described = [operation.body.model] if operation.body else []
        for model in (*described, *(answer.model for answer in operation.answers.values())):
            if model:
                found[model] = None
    return list(found)


def _operation(operation: Operation, settings: Settings) -> dict[str, Any]:
    answers = {**operation.answers, **(FOR_ALL if operation.needs_key else {})}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {str(status): _answer(answer) for status, answer in answers.items()},
    }
    if operation.parameters:
        described["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if body := operation.body:
        described["requestBody"] = {"required": True, "content": _content(body)}
    if operation.needs_key and settings.key:
        described["security"] = [{"key": []}]
    return described


def _reference(model: type[BaseModel]) -> str:
    return REFERENCE.format(model=model.__name__)


def _answer(answer: Answer) -> dict[str, Any]:
    return {"description": answer.meaning, **({"content": _content(answer)} if answer.content else {})}


def _content(described: Answer | Body) -> dict[str, Any]:
    schema = {"$ref": _reference(described.model)} if described.model else dict(described.schema or {})
    return {described.content: {"schema": schema}}


def _parameter(parameter: RouteParameter) -> dict[str, Any]:
    described = {"name": parameter.name, "in": parameter.where, "schema": dict(parameter.schema)}
    if parameter.description:
        described["description"] = parameter.description
    if parameter.required or parameter.where == "path":
        described["required"] = True
    return described
