"""Judges a server's answers by its own OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from jsonschema import Draft202012Validator


class Described:
    """A server's document. called: the operations (method, path) whose answers were judged, with their statuses."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = _closed(document)
        self.called: set[tuple[str, str, int]] = set()

    def check(self, answer: requests.Response, *_: Any, **__: Any) -> None:
        """Checks an answer's status, content type and body. It has the form of a hook of requests."""
        method, path = answer.request.method.lower(), urlsplit(answer.request.url).path
        where = f"{method} {path} {answer.status_code}"
        has_body, method = method != "head", method.replace("head", "get")
        template, operation = self._operation(method, path)
        found = operation["responses"].get(str(answer.status_code), operation["responses"].get("default"))
        assert found is not None, f"{where} is not described"
        self.called.add((method, template, answer.status_code))
        content_type = answer.headers.get("Content-Type", "").partition(";")[0]
        if "content" not in found:
            assert not answer.content, where
            return
        media = found["content"].get(content_type, found["content"].get("*/*"))
        assert media is not None, f"{where}: {content_type}"
        if content_type == "application/json" and has_body:
            schema = {**media["schema"], "components": self.document["components"]}
            problems = list(Draft202012Validator(schema).iter_errors(json.loads(answer.content)))
            assert not problems, f"{where}: {problems[0].message}"

    def _operation(self, method: str, path: str) -> tuple[str, dict[str, Any]]:
        """The operation at that path; one that names it letter by letter goes before those with parameters."""
        fits = [
            template
            for template, methods in self.document["paths"].items()
            if method in methods and re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path)
        ]
        assert fits, f"{method} {path} is not described"
        template = min(fits, key=lambda each: each.count("{"))
        return template, self.document["paths"][template][method]


def _closed(value: Any) -> Any:
    """A document whose objects have no other members than those that it names."""
    if isinstance(value, list):
        return [_closed(part) for part in value]
    if not isinstance(value, dict):
        return value
    closed = {name: _closed(part) for name, part in value.items()}
    if isinstance(value.get("properties"), dict) and value.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def json_schemas(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(where, schema) of each body that a document describes."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            bodies = {"request": operation.get("requestBody", {}), **operation["responses"]}
            for name, body in bodies.items():
                for media in body.get("content", {}).values():
                    yield f"{method} {path} {name}", media.get("schema")
