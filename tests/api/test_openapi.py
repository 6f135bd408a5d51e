"""The OpenAPI document against the routes that are registered, and against the one table of parameters."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from a2v.api.database.store import Store
from a2v.api.files import media, uploads
from a2v.api.protocol import access as auth
from a2v.api.protocol import openapi
from a2v.api.protocol.queue import Endpoint
from a2v.api.settings import Settings
from a2v.api.webhooks.deliveries import Webhooks
from a2v.ltx.request import PARAMETERS
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(system=tmp_path / "s", input=tmp_path / "i", output=tmp_path / "o", temp=tmp_path / "t", key="k")
    made.prepare()
    return made


@pytest.fixture
def database(settings: Settings) -> Iterator[Store]:
    made = Store(settings.database)
    yield made
    made.close()


@pytest.fixture
def endpoint(settings: Settings) -> Endpoint:
    return Endpoint(None, settings)  # the handlers are not called here


def plain(path: str) -> str:
    """aiohttp's path without the patterns of its parameters."""
    return re.sub(r"{(\w+):[^{}]*(?:{[^{}]*}[^{}]*)?}", r"{\1}", path)


def test_what_is_served_is_what_is_described(endpoint: Endpoint, settings: Settings, database: Store) -> None:
    own = [*endpoint.routes(), *uploads.routes(settings, database)]
    webhooks = Webhooks.__new__(Webhooks)  # only its routes
    webhooks.settings = settings
    served = [*own, *media.routes(settings), *webhooks.routes(), *auth.proxy_routes(settings, own)]
    # the operations of one request are served under the application's whole name, too
    found = {(route.method, plain(route.path)) for route in served if "audio-to-video/requests" not in route.path}
    described = openapi.document(endpoint.operations, settings)["paths"]
    assert found == {(method.upper(), path) for path, methods in described.items() for method in methods}


def test_every_reference_leads_somewhere_and_names_are_unique(endpoint: Endpoint, settings: Settings) -> None:
    document = openapi.document(endpoint.operations, settings)
    schemas = document["components"]["schemas"]

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for part in value.values():
                yield from walk(part)
        elif isinstance(value, list):
            for part in value:
                yield from walk(part)

    found = set(walk(document))
    assert found and {reference.removeprefix("#/components/schemas/") for reference in found} <= schemas.keys()
    names = [described["operationId"] for methods in document["paths"].values() for described in methods.values()]
    assert len(names) == len(set(names))


def test_ranges_and_choices_are_the_table_s(endpoint: Endpoint, settings: Settings) -> None:
    properties = openapi.document(endpoint.operations, settings)["components"]["schemas"]["Input"]["properties"]
    for name, parameter in PARAMETERS.items():
        described = properties[name]
        if parameter.kind == "choice":
            assert tuple(described["enum"]) == parameter.choices
        elif parameter.kind in ("number", "integer"):
            number = next(part for part in described.get("anyOf", [described]) if part["type"] != "null")
            assert (number["minimum"], number["maximum"]) == (parameter.minimum, parameter.maximum)
        if name != "prompt":
            assert described["default"] == parameter.default


def test_the_key_is_asked_for_where_the_document_says_so(endpoint: Endpoint, settings: Settings) -> None:
    async def answers() -> dict[str, int]:
        app = web.Application()
        app.add_routes(endpoint.routes())
        found = {}
        async with TestClient(TestServer(app)) as client:
            for operation in endpoint.operations:
                path = settings.prefix + operation.path.format(request_id="one")
                found[operation.path] = (await client.request(operation.method, path)).status
        return found

    document = openapi.document(endpoint.operations, settings)
    for path, status in asyncio.run(answers()).items():
        (described,) = document["paths"][settings.prefix + path].values()
        wanted = "security" in described
        assert status == (401 if wanted else 200) and ("401" in described["responses"]) == wanted
