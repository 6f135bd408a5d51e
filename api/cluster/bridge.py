"""The process between a head and its Ray cluster: lines of JSON on one side, an agent on each machine on the other.

`head` runs this file as a script. It imports nothing of the pack, because the agents' code travels to other machines.
An agent passes JSON to the ComfyUI of its own machine, over loopback, and passes the answers back.

In: {"do": "run", "id", "worker", "order"}, {"do": "stop", "id"}; the end of input ends this process and its agents.
Out: {"say": "joined", "ip"}, {"say": "workers", "workers"}, {"say": "line", "id", "line"}, {"say": "problem", "why"},
{"say": "refused", "why"}, after which it ends.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import platform
import re
import socket
import sys
import threading
import traceback
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

WORKER_PATH = "/ltx-a2v/worker"
OLDEST = (2, 52)
LOOK_SECONDS = 2.0
START_SECONDS = 60.0  # for an agent's first answer; Ray starts a process before it
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 60.0  # a running worker sends a line every second
NO_TOKEN = (
    "Ray's cluster reaches beyond this machine and {where} has no RAY_AUTH_MODE=token: set it on every machine, for "
    "`ray start` and for ComfyUI, with one token (`ray get-auth-token --generate`); until then the cluster is not used."
)

NO_AGENT = (
    "a machine of Ray's cluster (node {node}) cannot be used because no process could be started there ({error}): it "
    "needs RAY_AUTH_MODE=token and the token, the Ray and the Python version of the others."
)


class ClusterRefused(Exception):
    """Why this cluster is not used: one sentence."""


class Agent:
    """The agent on one machine, between Ray and the ComfyUI servers that `ray start` got in LTX_A2V_COMFYUI."""

    def __init__(self) -> None:
        self._running: dict[str, aiohttp.ClientResponse] = {}
        self._stopped: set[str] = set()

    async def describe(self) -> str:
        """{"mode": RAY_AUTH_MODE here, "name", "urls"}."""
        ports = re.split(r"[,\s]+", os.environ.get("LTX_A2V_COMFYUI", "").strip())
        urls = [f"http://127.0.0.1:{int(port)}" for port in ports if port.isdecimal()]
        return json.dumps({"mode": os.environ.get("RAY_AUTH_MODE", ""), "name": platform.node(), "urls": urls})

    def _session(self, silence: float) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        key = os.environ.get("LTX_A2V_API_KEY", "").strip()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Key {key}"} if key else {})}
        return aiohttp.ClientSession(timeout=timeout, headers=headers, read_bufsize=2**24)  # one line must fit into it

    async def look(self, url: str) -> str:
        """The state that the ComfyUI there reports, or {"error"}."""
        try:
            async with self._session(CONNECT_SECONDS) as session, session.get(url + WORKER_PATH) as response:
                if response.status != 200:
                    return json.dumps({"error": _meaning(response.status)})
                return await response.text()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            return json.dumps({"error": f"ComfyUI does not answer ({type(error).__name__})"})

    async def run(self, url: str, order_id: str, order: str) -> AsyncIterator[str]:
        """Gives an order to the ComfyUI there and yields its lines. {"kind": "lost"} says that there will be no
        outcome."""
        try:
            async with (
                self._session(SILENT_SECONDS) as session,
                session.post(f"{url}{WORKER_PATH}/run", data=order.encode()) as response,
            ):
                if response.status != 200:
                    yield json.dumps({"kind": "lost", "why": _meaning(response.status)})
                    return
                self._running[order_id] = response
                if order_id in self._stopped:
                    return
                async for line in response.content:
                    if line.strip():
                        yield line.decode()
                        if json.loads(line)["kind"] != "event":
                            return
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
            yield json.dumps({"kind": "lost", "why": f"its ComfyUI went away ({type(error).__name__})"})
            return
        finally:
            self._running.pop(order_id, None)
            self._stopped.discard(order_id)
        yield json.dumps({"kind": "lost", "why": "its ComfyUI ended the connection"})

    async def stop(self, order_id: str) -> None:
        """Closes the order's connection, which stops the run."""
        if order_id in self._running:
            self._running.pop(order_id).close()
        else:
            self._stopped.add(order_id)


def _meaning(status: int) -> str:
    if status in (404, 405):
        return "its ComfyUI is no worker: start it with LTX_A2V_WORKER=1"
    if status == 401:
        return "its ComfyUI asks for LTX_A2V_API_KEY: set the same one for `ray start` there"
    return f"its ComfyUI answered with status {status}"


class Bridge:
    """A driver of the cluster. workers: key → what the head is told about each."""

    def __init__(self, address: str, out: Any) -> None:
        self.address, self._out = address, out
        self.workers: dict[str, dict[str, Any]] = {}
        self._agents: dict[str, Any] = {}
        self._tending: dict[str, asyncio.Task[None]] = {}
        self._orders: dict[str, tuple[Any, asyncio.Task[None]]] = {}
        self._vetted: set[str] = set()
        self._far = False

    def say(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def join(self) -> None:
        """Joins the cluster. Errors: ClusterRefused."""
        if not _is_loopback_address(self.address) and _mode() != "token":
            raise ClusterRefused(NO_TOKEN.format(where="this server"))
        try:
            import ray
        except ImportError:
            raise ClusterRefused(
                "Ray is not installed here: `pip install 'ray>=2.52'` into ComfyUI's Python."
            ) from None
        if tuple(int(part) for part in ray.__version__.split(".")[:2]) < OLDEST:
            raise ClusterRefused(f"Ray {ray.__version__} is too old, it has no tokens: `pip install 'ray>=2.52'`.")
        try:
            ray.init(address=self.address, namespace="ltx-a2v", log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray has no exception class of its own here
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ClusterRefused(
                f"Ray's cluster at {self.address} cannot be joined ({reason.rstrip('.')}): this machine needs a "
                "`ray start` too, with the token, the Ray and the Python version of the others."
            ) from None
        self._look_at_nodes(ray.nodes())
        self.say(say="joined", ip=ray.util.get_node_ip_address())

    def _look_at_nodes(self, nodes: list[dict[str, Any]]) -> set[str]:
        """The ids of the running nodes. Errors: ClusterRefused if other machines belong to them and there is no
        token."""
        alive = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["Alive"]}
        self._far = not all(_is_loopback(address) for address in alive.values())
        if self._far and _mode() != "token":
            raise ClusterRefused(NO_TOKEN.format(where="this server"))
        return set(alive)

    async def serve(self) -> None:
        """Works until the input ends. Errors: ClusterRefused."""
        told: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def listen() -> None:
            for line in sys.stdin:
                loop.call_soon_threadsafe(told.put_nowait, json.loads(line))
            loop.call_soon_threadsafe(told.put_nowait, None)

        threading.Thread(target=listen, daemon=True).start()
        watching = asyncio.create_task(self._watch())
        hearing = asyncio.create_task(self._hear(told))
        done, _ = await asyncio.wait({watching, hearing}, return_when=asyncio.FIRST_COMPLETED)
        for order_id in list(self._orders):
            self._stop(order_id)
        for task in done:
            task.result()

    async def _hear(self, told: asyncio.Queue[dict[str, Any] | None]) -> None:
        while (message := await told.get()) is not None:
            if message["do"] == "stop":
                self._stop(message["id"])
                continue
            order = (message["id"], message["worker"], message["order"])
            task = asyncio.create_task(self._run(*order))
            self._orders[message["id"]] = (self._agents.get(message["worker"]), task)

    def _stop(self, order_id: str) -> None:
        agent, _ = self._orders.get(order_id, (None, None))
        if agent is not None:
            agent.stop.remote(order_id)

    async def _run(self, order_id: str, worker: str, order: dict[str, Any]) -> None:
        import ray

        def lost(reason: str) -> None:
            self._pass_on(order_id, worker, {"kind": "lost", "why": reason})

        try:
            if worker not in self.workers:
                lost("it has left the cluster")
                return
            url, agent = self.workers[worker]["url"], self._agents[worker]
            lines = agent.run.options(num_returns="streaming").remote(url, order_id, json.dumps(order))
            async for reference in lines:
                self._pass_on(order_id, worker, json.loads(await reference))
        except ray.exceptions.RayError as error:
            lost(f"its machine is gone ({type(error).__name__})")
        except Exception as error:  # a bug: the head must not wait for ever for this order
            traceback.print_exc()  # to ComfyUI's own log
            lost(f"the process between ComfyUI and Ray has a bug ({type(error).__name__})")
        finally:
            self._orders.pop(order_id, None)

    def _pass_on(self, order_id: str, worker: str, line: dict[str, Any]) -> None:
        if line["kind"] == "lost" and worker in self.workers:
            self.workers[worker]["error"] = line["why"]  # until it is looked at again
        self.say(say="line", id=order_id, line=line)

    async def _watch(self) -> None:
        """Keeps an agent on each machine and tells the head what they find."""
        import ray

        while True:
            alive = self._look_at_nodes(await asyncio.to_thread(ray.nodes))
            for node in alive - self._tending.keys():
                self._tending[node] = asyncio.create_task(self._tend(node))
            for node, task in list(self._tending.items()):
                if task.done():
                    del self._tending[node]
                    if not task.cancelled():
                        task.result()
                elif node not in alive:
                    task.cancel()
            if alive <= self._vetted:
                self.say(say="workers", workers=list(self.workers.values()))
            await asyncio.sleep(LOOK_SECONDS)

    async def _tend(self, node: str) -> None:
        """Looks after one machine as long as it is there. Errors: ClusterRefused."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        mine: dict[str, str] = {}
        agent = ray.remote(Agent).options(num_cpus=0, scheduling_strategy=On(node, soft=False)).remote()
        try:
            found = json.loads(await asyncio.wait_for(_as_future(agent.describe.remote()), START_SECONDS))
            if self._far and found["mode"] != "token":
                raise ClusterRefused(NO_TOKEN.format(where=found["name"]))
            self._vetted.add(node)
            mine = {f"{node}/{url}": url for url in found["urls"]}
            while True:
                for key, url in mine.items():
                    state = json.loads(await asyncio.wait_for(_as_future(agent.look.remote(url)), SILENT_SECONDS))
                    name = f"{found['name']}:{url.rpartition(':')[2]}"
                    self._agents[key] = agent
                    self.workers[key] = {"key": key, "name": name, "url": url, **state}
                await asyncio.sleep(LOOK_SECONDS)
        except (ray.exceptions.RayError, asyncio.TimeoutError) as error:
            if node not in self._vetted:  # otherwise it died later, and its orders report that
                self.say(say="problem", why=NO_AGENT.format(node=node[:8], error=type(error).__name__))
            self._vetted.add(node)  # this machine is not used, and the others need not wait for it
            await asyncio.sleep(LOOK_SECONDS)  # then the machine is tried again, if it is still there
        finally:
            for key in mine:
                self.workers.pop(key, None)
                self._agents.pop(key, None)


async def _as_future(reference: Any) -> Any:
    return await reference


def _mode() -> str:
    return os.environ.get("RAY_AUTH_MODE", "").strip().lower()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        return all(ipaddress.ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))
    except (OSError, ValueError):
        return False


def _is_loopback_address(address: str) -> bool:
    """Whether host:port of a cluster is on loopback. "auto" is found on this machine; its nodes are checked once it is
    joined."""
    return address == "auto" or _is_loopback(address.rpartition(":")[0].strip("[]"))


def main() -> None:
    sys.path.pop(0)  # this folder: nobody may import its files by their bare names
    # Ray repeats its errors every second; the head logs the important ones
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with the messages
    bridge = Bridge(sys.argv[1], out)
    try:
        bridge.join()
        asyncio.run(bridge.serve())
    except ClusterRefused as refused:
        bridge.say(say="refused", why=str(refused))
    out.close()


if __name__ == "__main__":
    main()
