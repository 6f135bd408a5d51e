"""The OpenAPI document against the routes that are registered, and against the one table of parameters."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from a2v.api.applications import APPLICATIONS
from a2v.api.database.store import Store
from a2v.api.install import all_operations, routes
from a2v.api.protocol.openapi import document
from a2v.api.protocol.operations import Operation
from a2v.api.queue.queue import RequestQueue
from a2v.api.settings import Settings
from a2v.ltx.request import OF_VIDEOS, PARAMETERS
from a2v.tests.api.described import json_schemas
from a2v.tests.api.edges import app_of, make_settings
from aiohttp.test_utils import TestClient, TestServer


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, key="k")


@pytest.fixture
def queue(settings: Settings, database: Store) -> RequestQueue:
    return RequestQueue(None, database, settings, None)  # the handlers are not called here


@pytest.fixture
def described(queue: RequestQueue, settings: Settings, database: Store) -> list[Operation]:
    return all_operations(queue, settings, database, None)


def plain(path: str) -> str:
    """aiohttp's path without the patterns of its parameters."""
    return re.sub(r"{(\w+):[^{}]*(?:{[^{}]*}[^{}]*)?}", r"{\1}", path)


def test_what_is_served_is_what_is_described(
    queue: RequestQueue, described: list[Operation], settings: Settings, database: Store
) -> None:
    served = [route for route in routes(queue, settings, database, None) if route.method != "*"]
    # the operations of one request are served under the application's whole name, too
    served = [route for route in served if not re.search("-video.*/requests", route.path)]
    found = {(route.method, plain(route.path)) for route in served}
    paths = document(described, settings)["paths"]
    assert found == {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_every_reference_leads_somewhere_and_names_are_unique(described: list[Operation], settings: Settings) -> None:
    whole = document(described, settings)
    schemas = whole["components"]["schemas"]

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for part in value.values():
                yield from walk(part)
        elif isinstance(value, list):
            for part in value:
                yield from walk(part)

    found = set(walk(whole))
    assert found and {reference.removeprefix("#/components/schemas/") for reference in found} <= schemas.keys()
    names = [found["operationId"] for methods in whole["paths"].values() for found in methods.values()]
    assert len(names) == len(set(names))


def test_each_body_has_a_schema(described: list[Operation], settings: Settings) -> None:
    """The proxy alone has none: its bodies are those of any other route."""
    found = [(where, schema) for where, schema in json_schemas(document(described, settings)) if "/proxy" not in where]
    assert len(found) > 200 and [where for where, schema in found if not schema] == []


def test_each_application_s_result_is_its_own(described: list[Operation], settings: Settings) -> None:
    paths = document(described, settings)["paths"]

    def model(method: str, path: str) -> str:
        content = paths[f"/fal/{path}"][method]["responses"]["200"]["content"]
        return content["application/json"]["schema"]["$ref"].rpartition("/")[2]

    for application in APPLICATIONS.values():
        expected = "VideoOutput" if application.owner == "lightricks/ltx-2.5" else "Output"
        assert model("post", f"run/{application.id}") == expected
        assert model("get", f"queue/{application.owner}/requests/{{request_id}}") == expected


def test_ranges_and_choices_are_the_table_s(described: list[Operation], settings: Settings) -> None:
    properties = document(described, settings)["components"]["schemas"]["Input"]["properties"]
    assert not properties.keys() & {*OF_VIDEOS}
    for name, parameter in PARAMETERS.items():
        if name in OF_VIDEOS:
            continue
        found = properties[name]
        if parameter.kind == "choice":
            assert tuple(found["enum"]) == parameter.choices
        elif parameter.kind in ("number", "integer"):
            number = next(part for part in found.get("anyOf", [found]) if part["type"] != "null")
            assert (number["minimum"], number["maximum"]) == (parameter.minimum, parameter.maximum)
        if name != "prompt":
            assert found["default"] == parameter.default


def test_the_key_is_asked_for_where_the_document_says_so(described: list[Operation], settings: Settings) -> None:
    values = {"request_id": "one", "id": "0" * 32, "multipart": "0" * 32, "number": "1", "name": "x"}

    async def answers() -> list[int]:
        async with TestClient(TestServer(app_of(described, settings))) as client:
            paths = [settings.prefix + operation.plain_path.format(**values) for operation in described]
            asked = zip(described, paths, strict=True)
            return [(await client.request(operation.method, path)).status for operation, path in asked]

    whole = document(described, settings)["paths"]
    for operation, status in zip(described, asyncio.run(answers()), strict=True):
        said = whole[settings.prefix + operation.plain_path][operation.method.lower()]
        assert ("security" in said) == operation.needs_key
        assert status == 401 or not operation.needs_key, operation.name
        assert status != 401 or "401" in said["responses"], operation.name
        if operation.name == "describe":
            assert status == 200
