"""Publishes the key that checks webhooks, for anyone."""

from __future__ import annotations

from aiohttp import web

from ..webhooks.deliveries import JWKS, Webhooks, WebhooksOff
from .answers import problem
from .messages import PlainProblem, PublicKeys
from .operations import Answer, Operation


def operations(webhooks: Webhooks) -> list[Operation]:
    async def jwks(_: web.Request) -> web.Response:
        try:
            signer = webhooks.signer()
        except WebhooksOff as error:
            return problem(503, str(error))
        return web.json_response(signer.jwks, headers={"Cache-Control": "max-age=86400"})

    return [
        Operation(
            name="jwks",
            method="GET",
            path=JWKS,
            handler=jwks,
            summary="Returns the public key that checks webhooks.",
            answers={
                200: Answer("A JSON Web Key Set.", PublicKeys),
                503: Answer("This server sends no webhooks at the moment.", PlainProblem),
            },
            needs_key=False,
            head=True,
        )
    ]
