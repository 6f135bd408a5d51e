"""The published key that checks webhooks, for anyone."""

from __future__ import annotations

from aiohttp import web

from ..webhooks.deliveries import JWKS, Webhooks
from .operations import Answer, Operation


def operations(webhooks: Webhooks) -> list[Operation]:
    async def jwks(_: web.Request) -> web.Response:
        return web.json_response(webhooks.signer.jwks, headers={"Cache-Control": "max-age=86400"})

    return [
        Operation(
            name="jwks",
            method="GET",
            path=JWKS,
            handler=jwks,
            summary="The key that signs webhooks.",
            answers={200: Answer("A JSON Web Key Set.")},
            needs_key=False,
            head=True,
        )
    ]
