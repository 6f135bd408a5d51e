"""What a running sampler shows while its blocks are compiled, and what that step says about the time that is left."""

from __future__ import annotations

import pytest

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import torch
from a2v.ltx.diffusion.tokens import Tokens
from a2v.ltx.left import TimeLeft
from a2v.ltx.windows import Window
from a2v.nodes import progress
from a2v.nodes.progress import Progress, StageProgress

LATENT = torch.zeros(1, 128, 2, 1, 1)
X0 = Tokens(torch.zeros(1, 2, 128), torch.zeros(1, 1, 128))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the node has shown."""
    texts: list[str] = []
    monkeypatch.setattr(progress, "show_text", lambda _, text, window="": texts.append(text))
    monkeypatch.setattr(progress, "preview", lambda latent: None)
    return texts


def test_a_clip_says_that_it_compiles(shown: list[str]) -> None:
    hooks = StageProgress(Progress("7"), [Window(0, 2)], 3).hooks(0, LATENT)
    hooks.on_compile()
    hooks.on_compile()
    assert shown == ["compiling"], "once for all forms of the block"
    hooks.on_step(1, 3, X0)
    assert shown == ["compiling", "compiled"]
    hooks.on_step(2, 3, X0)
    hooks.on_compile()
    hooks.on_step(3, 3, X0)
    assert shown == ["compiling", "compiled"] * 2


def test_a_film_estimates_without_the_step_that_compiled(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "TimeLeft", lambda costs: TimeLeft(costs, lambda: now[0]))
    hooks = StageProgress(Progress("7"), [Window(0, 2), Window(1, 2, 1)], 4).hooks(0, LATENT)
    hooks.on_compile()
    now[0] = 60
    hooks.on_step(1, 4, X0)
    now[0] = 65
    hooks.on_step(2, 4, X0)
    place = "window 1 of 2"
    assert shown == [f"{place}, compiling", place, f"{place}, about 30 s left"], "six steps of five seconds"


def test_a_text_reaches_only_the_browser_that_queued_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that queues without a browser names no client, and what goes to no client goes to all."""
    sent: list[tuple[dict[str, str], str]] = []

    class Server:
        client_id: str | None = "page"

        def send_sync(self, event: str, data: dict[str, str], client_id: str) -> None:
            sent.append((data, client_id))

    server = Server()
    monkeypatch.setattr(progress, "running_server", lambda: server)
    progress.show_text("7", "9 frames")
    server.client_id = None
    progress.show_text("7", "17 frames")
    assert sent == [({"node": "7", "text": "9 frames"}, "page")]
