"""A real ComfyUI server for tests and the demo: start it, queue a prompt, follow it to its end, stop it.

Plain calls over HTTP and one websocket a run; no asyncio, no pytest, and nothing of ComfyUI is imported here. The pack
is installed the way `git clone` would: a folder of its name under custom_nodes/, here a link to this checkout.

The server is the one that `make setup` unpacks, or the one in the folder that LTX_A2V_HOST names; the interpreter that
runs the tests runs it, too. `make host COMFYUI=path` sets both. `make windows` names another one in LTX_A2V_PYTHON.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import requests
import websocket
from a2v.tests.tiny import TinyFiles, write_tiny

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(os.environ.get("LTX_A2V_HOST") or ROOT / ".host" / "comfyui").resolve()
PACK = "ltx-audio-to-video"
START_SECONDS = 120
LOG_TAIL = 40
PREVIEW_IMAGE = 1

Prompt = dict[str, dict[str, Any]]


class ComfyError(RuntimeError):
    """The server did not start, died, or did not answer in time; the text ends with the tail of its log."""


class PromptRejected(ValueError):
    """The server refused a prompt, or parts of one. `error` is the whole prompt's, `node_errors` are by node id."""

    def __init__(self, error: dict[str, Any], node_errors: dict[str, Any]) -> None:
        self.error, self.node_errors = error, node_errors
        # for one error of one node, "details" is the sentence that a person wants to read
        lines = [f"{e['message']}: {e['details']}" for node in node_errors.values() for e in node["errors"]]
        super().__init__("\n".join(lines) or f"{error.get('message')}: {error.get('details')}")


@dataclass(frozen=True)
class Event:
    """One websocket message. A binary preview has the type "preview" and its encoded picture in data["image"]."""

    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A prompt that came to its end, well or badly."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]]  # by node id, as /history has them
    status: dict[str, Any]
    events: list[Event] = field(repr=False)
    executed: list[str] = field(default_factory=list)  # node ids in the order they ran
    cached: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None  # of execution_error: node_id, node_type, exception_type, exception_message …
    interrupted: bool = False

    @property
    def message(self) -> str | None:
        """What a person reads when the run failed."""
        return self.error["exception_message"].strip() if self.error else None


class Comfy:
    """A server on a port of its own over `base` (models/, input/, output/, custom_nodes/ …); a context manager."""

    def __init__(
        self, base: Path, *, pack: Path | None = ROOT, args: tuple[str, ...] = (), host: Path = HOST, cpu: bool = True
    ) -> None:
        if not (host / "main.py").is_file():
            raise ComfyError(f"No ComfyUI at {host}; run `make setup` first.")
        self.base = base.resolve()
        self.log_file = self.base / "server.log"
        custom_nodes = self.base / "custom_nodes"
        custom_nodes.mkdir(parents=True, exist_ok=True)
        link = custom_nodes / PACK
        link.unlink(missing_ok=True)
        if pack is not None:
            link.symlink_to(pack, target_is_directory=True)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands between us and loopback
        python = os.environ.get("LTX_A2V_PYTHON") or sys.executable
        command = [python, str(host / "main.py"), *(["--cpu"] if cpu else []), "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", f"sqlite:///{self.base / 'comfy.db'}"]
        command += ["--disable-auto-launch", "--disable-api-nodes", *args]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        env |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.base,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of its own: stop() takes its children too
            )
        atexit.register(self._kill)  # for an interrupt that hits stop() itself
        try:
            self._wait_until_ready()
            if "(IMPORT FAILED)" in self.log:
                raise ComfyError(f"ComfyUI could not load the pack.\n{self._tail()}")
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Comfy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the server has printed so far."""
        return self.log_file.read_text(errors="replace")

    def get(self, path: str, **params: Any) -> Any:
        """JSON of a GET on `path`."""
        answer = self._session.get(self.url + path, params=params, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: dict[str, Any]) -> requests.Response:
        return self._session.post(self.url + path, json=body, timeout=60)

    def object_info(self) -> dict[str, Any]:
        return self.get("/object_info")

    def not_an_option(self, kind: str, field: str, value: str) -> str:
        """What a ComfyUI newer than 0.3.75 says of a widget's value that is not among its options, before any node."""
        inputs = self.object_info()[kind]["input"]
        given, *more = {**inputs["required"], **inputs.get("optional", {})}[field]
        options = given if isinstance(given, list) else more[0]["options"]
        return f"Value not in list: {field}: {value!r} not in {options}"

    def upload(self, file: Path) -> str:
        """Sends an input file (audio goes the same way as pictures); the name to give to a loader."""
        with file.open("rb") as data:
            answer = self._session.post(self.url + "/upload/image", files={"image": (file.name, data)}, timeout=60)
        answer.raise_for_status()
        stored = answer.json()
        return "/".join(part for part in (stored["subfolder"], stored["name"]) if part)

    def queue(self, prompt: Prompt, extra_data: dict[str, Any] | None = None, client_id: str | None = None) -> str:
        """Queues; the prompt id. PromptRejected when any part is refused, and then nothing of it runs."""
        body: dict[str, Any] = {"prompt": prompt, "extra_data": extra_data or {}}
        if client_id:
            body["client_id"] = client_id
        answer = self.post("/prompt", body)
        result = answer.json()
        if answer.status_code == 400:
            # some checks answer with a plain sentence instead of the usual object
            error = result["error"] if isinstance(result["error"], dict) else {"message": result["error"]}
            raise PromptRejected(error, result.get("node_errors") or {})
        answer.raise_for_status()
        if result["node_errors"]:
            # the server runs the outputs that are valid: not what was asked for
            self.post("/queue", {"delete": [result["prompt_id"]]})
            self.interrupt(result["prompt_id"])
            raise PromptRejected({"message": "parts of the prompt were refused"}, result["node_errors"])
        return result["prompt_id"]

    def run(
        self,
        prompt: Prompt,
        on_event: Callable[[Event], None] | None = None,
        extra_data: dict[str, Any] | None = None,
        timeout: float = 240,
    ) -> Run:
        """Queues and follows to the end. Errors of the run are in the Run; `timeout` is seconds without its end."""
        client_id = uuid.uuid4().hex
        connection = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client_id}", timeout=10)
        deadline = time.monotonic() + timeout
        events: list[Event] = []
        try:
            prompt_id = self.queue(prompt, extra_data, client_id)
            while True:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                event = _event(connection.recv())
                if event is None or event.data.get("prompt_id", prompt_id) != prompt_id:
                    continue
                events.append(event)
                if on_event:
                    on_event(event)
                if event.type == "executing" and event.data["node"] is None:
                    break
        except websocket.WebSocketTimeoutException:
            self.interrupt()
            raise ComfyError(f"The run did not end within {timeout:g} s.\n{self._tail()}") from None
        except (websocket.WebSocketConnectionClosedException, ConnectionError) as error:
            raise ComfyError(f"The server went away during a run: {error}\n{self._tail()}") from None
        finally:
            connection.close()
        return _run(prompt_id, events, self.get(f"/history/{prompt_id}")[prompt_id])

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Ends the running prompt; with an id only if that is the one."""
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {}).raise_for_status()

    def free(self) -> None:
        """Unloads all models and forgets all results. The server does so when it next looks at its queue, which can be
        after the next graph; so a small one runs."""
        self.post("/free", {"unload_models": True, "free_memory": True}).raise_for_status()
        small = {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
        self.run(small)

    def path(self, result: dict[str, str]) -> Path:
        """Where a result of a run ({"filename", "subfolder", "type"}) lies on disk."""
        return self.base / result["type"] / result["subfolder"] / result["filename"]

    def stop(self) -> None:
        """Ends the server and whatever it started; may be called again."""
        try:
            if self._process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    os.killpg(self.pid, signal.SIGINT)  # it removes its temp folder on this one
                    self._process.wait(10)
        finally:
            self._kill()
            atexit.unregister(self._kill)
            self._session.close()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ComfyError(f"ComfyUI ended with status {self._process.returncode}.\n{self._tail()}")
            try:
                self.get("/system_stats")
                return
            except requests.RequestException:
                time.sleep(0.1)
        raise ComfyError(f"ComfyUI was not ready after {START_SECONDS} s.\n{self._tail()}")

    def _tail(self) -> str:
        return "\n".join(self.log.splitlines()[-LOG_TAIL:])


def write_models(base: Path, **sizes: int | str) -> TinyFiles:
    """Writes the tiny set into the model folders of `base`, each file where its loader looks; their paths there. Its
    decoder is narrow, because decoding is a third of a small run otherwise."""
    files = write_tiny(base / "models" / "tiny", **{"vae_width": 4, **sizes})
    folders = {
        "checkpoint": "checkpoints",
        "upscaler": "latent_upscale_models",
        "distilled_lora": "loras",
        "camera_lora": "loras",
        "gemma": "text_encoders",
    }
    placed = {}
    for name, folder in folders.items():
        source = getattr(files, name)
        placed[name] = base / "models" / folder / source.name
        placed[name].parent.mkdir(exist_ok=True)
        source.rename(placed[name])
    files.checkpoint.parent.rmdir()
    return replace(files, **placed)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _event(message: str | bytes) -> Event | None:
    """One message; None for binary ones that are no preview."""
    if isinstance(message, str):
        parsed = json.loads(message)
        return Event(parsed["type"], parsed["data"])
    if int.from_bytes(message[:4], "big") != PREVIEW_IMAGE:
        return None
    return Event("preview", {"image": message[8:]})  # 4 bytes of kind, 4 of picture format


def _run(prompt_id: str, events: list[Event], history: dict[str, Any]) -> Run:
    ran = [e.data["node"] for e in events if e.type == "executing" and e.data["node"] is not None]
    return Run(
        prompt_id=prompt_id,
        outputs=history["outputs"],
        status=history["status"],
        events=events,
        executed=list(dict.fromkeys(ran)),  # a node that waits on others is announced again
        cached=[node for e in events if e.type == "execution_cached" for node in e.data["nodes"]],
        error=next((e.data for e in events if e.type == "execution_error"), None),
        interrupted=any(e.type == "execution_interrupted" for e in events),
    )
