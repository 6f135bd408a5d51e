"""The HTTP API under attack and failure, on a real ComfyUI: each attack by itself, and what came of it in figures.

    python tests/host/attacks.py [--pack FOLDER] [NAME …]

runs them against the pack in that folder, this one by default, and prints a table; test_api_attacks.py holds them to
their figures. All of it is bounded, and on loopback.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import socket
import sqlite3
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

import requests
from a2v.tests.api.edges import data_uri, png, wav
from a2v.tests.host.api import APP, LONG, SMALL, write_published
from a2v.tests.host.attack_place import SOUND, Outside, Place, Poller, animation, is_ended, locked, noise, wait
from a2v.tests.host.comfy import PromptRejected
from PIL import Image

MIB = 2**20
LOCK_SECONDS = 15  # longer than a write waits, shorter than a lease
Figures = dict[str, Any]
ATTACKS: dict[str, Callable[[Place], Figures]] = {}


def attack(function: Callable[[Place], Figures]) -> Callable[[Place], Figures]:
    ATTACKS[function.__name__] = function
    return function


# 1. a lease outlives its task


@attack
def lock_at_the_end(place: Place) -> Figures:
    """Another process holds the database for 15 s while a run ends."""
    with place.server() as server:
        request = server.submit(seed=1).json()
        wait(lambda: any(line.startswith("Second stage") for line in server.lines(request)))
        with locked(place):
            wait(lambda: [name for name in place.files("output") if not name.startswith(".")])
            time.sleep(LOCK_SECONDS)
        ended = server.ended(request, 60)
        if ended is None:
            requests.put(request["cancel_url"], timeout=60)
            ended_by_cancel = server.ended(request, 15) is not None
        else:
            ended_by_cancel = True
        return {"ends within 60 s": ended is not None and "error" not in ended, "cancel works": ended_by_cancel}


@attack
def lock_as_media_arrive(place: Place) -> Figures:
    """Another process holds the database for 15 s while a file is fetched."""
    with place.server() as server, Outside("give") as other:
        data = wav(0.5)
        handler = other.server.RequestHandlerClass
        arrived = threading.Event()

        def give(self: Any) -> None:
            arrived.set()
            time.sleep(1)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        handler.do_GET = give
        request = server.submit(audio_url=f"{other.url}/a.wav").json()
        arrived.wait(60)
        with locked(place):
            time.sleep(LOCK_SECONDS)
        ended = server.ended(request, 60)
        return {"ends within 60 s": ended is not None and "error" not in ended}


# 2. pictures


@attack
def small_pictures(place: Place) -> Figures:
    """A GIF of 60 frames of a megapixel (450 of them were 11 GB), and a PNG of 156 megapixels in 190 KB."""
    with place.server() as server:
        server.time_of()
        picture = data_uri(png(64), "image/png")
        server.time_of(image_url=picture)
        with server.peak() as peak:
            server.time_of(image_url=data_uri(animation(60, 1000), "image/gif"))
            gif = peak()
        large = io.BytesIO()
        Image.new("1", (12_500, 12_500)).save(large, "PNG")
        answer = server.submit(image_url=data_uri(large.getvalue(), "image/png"), num_inference_steps=8)
        if answer.status_code == 200:  # not run here: it would take 8 GB
            requests.put(answer.json()["cancel_url"], timeout=60)
            server.ended(answer.json())
        return {"MiB for the GIF": gif, "the PNG is refused": answer.status_code == 422}


@attack
def kill_goes_to_the_end(place: Place) -> Figures:
    """A request under which its server is killed, and one that waits behind it: which one is run first afterwards."""
    with place.server(LTX_A2V_LEASE_SECONDS="2") as server:
        killer = server.submit(**LONG).json()
        wait(lambda: any("step" in line for line in server.lines(killer)))
        second = server.submit(seed=2).json()
        server.kill()
    with place.server(LTX_A2V_LEASE_SECONDS="2") as server:
        for request in (killer, second):
            request["status_url"] = f"{server.fal}{request['status_url'].partition('/fal')[2]}"
            request["cancel_url"] = f"{server.fal}{request['cancel_url'].partition('/fal')[2]}"
        ended = server.ended(second, 120) is not None and server.status(killer)["status"] != "COMPLETED"
        requests.put(killer["cancel_url"], timeout=60)
        server.ended(killer, 60)
        return {"the other one is run first": ended}


# 3. a shared request


@attack
def one_of_two_leaves(place: Place) -> Figures:
    """Two clients run one request by its key; the first one hangs up."""
    with place.server() as server, ThreadPoolExecutor() as pool:
        key = {"Idempotency-Key": "shared"}
        body = json.dumps(
            {**SMALL, "audio_url": SOUND, "num_inference_steps": 50, "num_frames": 97, "seed": 3}
        ).encode()
        head = f"POST /fal/run/{APP} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Idempotency-Key: shared\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.comfy.port), 60) as plain:
            plain.sendall(head.encode() + body)
            wait(lambda: server.comfy.get("/queue")["queue_running"])
            second = pool.submit(requests.post, f"{server.fal}/run/{APP}", data=body, timeout=300,
                                 headers={**key, "Content-Type": "application/json"})  # fmt: skip
            time.sleep(0.5)
        return {"the other gets the result": second.result().status_code == 200}


# 4. owners


@attack
def files_after_expiry(place: Place) -> Figures:
    """Requests that end in every way, one with the sound of another whose picture is still on its way: whether that one
    keeps it, and how many files stay at the end."""
    sounds = [wav(0.3 + number / 10) for number in range(4)]
    uris = [data_uri(sound, "audio/wav") for sound in sounds]
    picture = noise(700)
    old_is_gone = threading.Event()

    def give(self: Any) -> None:
        data = sounds[0] if self.path == "/sound.wav" else picture
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        sent = 0
        while self.path == "/picture.png" and not old_is_gone.wait(1) and sent < len(picture) - 8192:
            self.wfile.write(data[sent : sent + 8192])
            sent += 8192
        self.wfile.write(data[sent:])

    with place.server(LTX_A2V_EXPIRE_HOURS="0.003") as server, Outside("give") as other:
        other.server.RequestHandlerClass.do_GET = give
        old = server.submit(audio_url=uris[0]).json()
        server.submit(audio_url=uris[1], fps=0)
        server.submit(audio_url=uris[2], image_url="http://localhost:9/none.png")
        server.ended(old)
        cancelled = server.submit(**{**LONG, "audio_url": uris[3]}).json()
        requests.put(cancelled["cancel_url"], timeout=60)
        live = server.submit(audio_url=f"{other.url}/sound.wav", image_url=f"{other.url}/picture.png").json()
        wait(lambda: place.rows("SELECT gone FROM requests WHERE id = ?", old["request_id"])[0][0], 100)
        time.sleep(1)  # the file goes after the mark
        old_is_gone.set()
        status = server.ended(live)
    with place.server(LTX_A2V_EXPIRE_HOURS="0.00001"):
        wait(lambda: not place.files("input") + place.files("output"), 90)
        left = len(place.files("input")) + len(place.files("output"))
    keeps = status is not None and "error" not in status
    return {"the waiting request keeps its sound": keeps, "files left": left}


@attack
def parts_again(place: Place) -> Figures:
    """One part sent 20 times under a cap of 1 MB, then a legitimate resend, then one in flight at the completion."""
    with place.server(LTX_A2V_MAX_UPLOAD_MB="1") as server:
        announce = f"{server.fal}/rest/storage/upload/initiate-multipart"
        urls = requests.post(announce, json={}, timeout=60).json()
        target, _, query = urls["upload_url"].partition("?")
        statuses = [
            requests.put(f"{target}/1?{query}", data=os.urandom(400_000), timeout=60).status_code for _ in range(20)
        ]
        kept = sum(path.stat().st_size for path in (place.system / "uploads").iterdir())
        urls = requests.post(announce, json={}, timeout=60).json()
        target, _, query = urls["upload_url"].partition("?")
        part = requests.put(f"{target}/1?{query}", data=b"x" * 600_000, timeout=60).json()
        resend = requests.put(f"{target}/1?{query}", data=b"x" * 600_000, timeout=60).status_code
        go_on = threading.Event()

        def slowly() -> Iterator[bytes]:
            yield b"y" * 1000
            go_on.wait(60)
            yield b"y"

        with ThreadPoolExecutor() as pool:
            late = pool.submit(requests.put, f"{target}/2?{query}", data=slowly(), timeout=60)
            time.sleep(1)
            requests.post(f"{target}/complete?{query}", json={"parts": [part]}, timeout=60).raise_for_status()
            go_on.set()
            status = late.result().status_code
        return {
            "accepted of 20": statuses.count(200),
            "KB kept": kept // 1000,
            "a resend": resend,
            "a late part": status,
        }


@attack
def many_old_requests(place: Place) -> Figures:
    """100,000 ended requests of which the files expire: the longest answer beside it, and memory."""
    with place.server():
        pass
    columns = "id, app, arguments, media, ready, status, priority, digest, base_url, created, ended, cancel, attempts, "
    columns += "sync_mode, gone, result"
    graph = json.dumps({"video": {"file_name": "0" * 32 + ".mp4"}, "seed": 1, "prompt": "x" * 200})
    ended = time.time() - 3600 * 5
    values = (
        (f"old-{n}", APP, "{}", "{}", 1, "COMPLETED", 0, "d", "", ended, ended, 0, 1, 0, 0, graph)
        for n in range(100_000)
    )
    with closing(sqlite3.connect(place.database, timeout=60)) as connection:
        connection.executemany(f"INSERT INTO requests ({columns}) VALUES ({', '.join('?' * 16)})", values)
        connection.commit()
    with place.server(LTX_A2V_EXPIRE_HOURS="4") as server, server.peak() as peak:
        url = f"{server.fal}/queue/{APP}/requests/old-99999/status"
        with Poller(url) as poller:
            wait(lambda: place.rows("SELECT count(*) FROM requests WHERE gone = 0")[0][0] == 0, 180)
            time.sleep(2)
        left = place.rows("SELECT count(*) FROM requests WHERE gone = 0")[0][0]
        return {"longest answer, s": round(poller.longest, 2), "MiB": peak(), "not expired": left}


# 5. bodies


@attack
def large_json(place: Place) -> Figures:
    """One JSON body of 120 MB, a list of lists: the longest answer beside it, and memory."""
    with place.server() as server:
        server.time_of()
        body = b'{"prompt": "x", "other": [' + b"[]," * (40 * 10**6) + b"0]}"
        with server.peak() as peak, Poller(f"{server.comfy.url}/system_stats") as poller:
            headers = {"Content-Type": "application/json"}
            with suppress(requests.ConnectionError):  # it is refused before all of it was sent
                requests.post(f"{server.fal}/queue/{APP}", data=body, headers=headers, timeout=600)
            time.sleep(1)
            return {"longest answer, s": round(poller.longest, 2), "MiB": peak()}


@attack
def data_uri_of_100_mb(place: Place) -> Figures:
    """A legitimate one: the longest answer beside it, and memory."""
    with place.server() as server:
        server.time_of()
        data = bytes(range(256)) * 4 * 70 * 1024
        body = json.dumps({**SMALL, "audio_url": "data:audio/wav;base64," + base64.b64encode(wav() + data).decode()})
        with server.peak() as peak, Poller(f"{server.comfy.url}/system_stats") as poller:
            headers = {"Content-Type": "application/json"}
            answer = requests.post(f"{server.fal}/queue/{APP}", data=body.encode(), headers=headers, timeout=600)
            taken = answer.status_code == 200
            if taken:
                requests.put(answer.json()["cancel_url"], timeout=60)
            return {"taken": taken, "longest answer, s": round(poller.longest, 2), "MiB": peak()}


@attack
def bodies_given_up(place: Place) -> Figures:
    """Twenty bodies of 50 MB that stop midway, their connections open: memory, and how many are ended after 45 s."""
    with place.server() as server, ExitStack() as stack, server.peak() as peak:
        head = f"POST /fal/queue/{APP} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {50 * MIB}\r\n\r\n"
        begin = b'{"audio_url": "data:audio/wav;base64,' + b"A" * (25 * MIB)
        connections = []
        for _ in range(20):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", server.comfy.port), 60))
            plain.sendall(head.encode() + begin)
            connections.append(plain)
        time.sleep(3)
        memory = peak()
        time.sleep(45)
        return {"MiB": memory, "ended of 20": sum(map(is_ended, connections))}


# 6. slow ones


@attack
def slow_addresses(place: Place) -> Figures:
    """Twenty files at addresses that do not answer or drip: a request with an upload alone, and beside them."""
    with place.server() as server, ExitStack() as stack:
        url = server.upload(wav(0.5))
        server.time_of(audio_url=url)
        alone = server.time_of(audio_url=url)
        others = [stack.enter_context(Outside(what)) for what in ("hang", "drip") for _ in range(10)]
        slow = [server.submit(audio_url=f"{other.url}/a.wav").json() for other in others]
        wait(lambda: all(other.asked for other in others), 10)
        beside = server.time_of(audio_url=url)
        for request in slow:
            requests.put(request["cancel_url"], timeout=60)
        return {"alone, s": round(alone, 1), "beside, s": round(beside, 1)}


@attack
def hanging_webhooks(place: Place) -> Figures:
    """Forty webhooks of a server that hangs, then one of a server that answers: seconds until that one is told."""
    with place.server() as server, Outside("hang") as hangs, Outside("answer") as answers:
        requests_ = [
            server.submit(f"?fal_webhook={hangs.url}/{n}", audio_url="http://localhost:9/none.wav").json()
            for n in range(40)
        ]
        for request in requests_:
            server.ended(request)
        last = server.submit(f"?fal_webhook={answers.url}/hook", audio_url="http://localhost:9/none.wav").json()
        server.ended(last)
        return {"told after, s": round(wait(lambda: answers.asked), 1)}


@attack
def stalled_uploads(place: Place) -> Figures:
    """200 uploads that stop after some bytes: how many are ended after 45 s, and memory."""
    with place.server() as server, ExitStack() as stack, server.peak() as peak:
        token = requests.post(f"{server.fal}/rest/storage/auth/token", json={}, timeout=60).json()["token"]
        head = f"POST /fal/cdn/files/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        head += "Content-Length: 1000000\r\n\r\n"
        connections = []
        for _ in range(200):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", server.comfy.port), 60))
            plain.sendall(head.encode() + b"x" * 1000)
            connections.append(plain)
        time.sleep(45)
        parts = len(list((place.system / "uploads").glob(".*.part")))
        return {"ended of 200": sum(map(is_ended, connections)), "files half written": parts, "MiB": peak()}


@attack
def all_at_once(place: Place) -> Figures:
    """20 slow addresses, 40 hanging webhooks, 200 stalled uploads and ten bodies of 100 MB beside one request.

    The run's share: of the processor time that the server takes until the run or the last body ends, that of the run's
    thread. It depends neither on the run's length nor on what else the machine does; a ratio of the run's times beside
    and alone grows as runs get faster, because the bodies take their seconds all the same.
    """
    with place.server() as server, ExitStack() as stack:
        body = {"num_inference_steps": 50, "num_frames": 97, "audio_url": server.upload(wav(4.0))}
        server.time_of(**body)
        before = server.processor_times()
        alone = server.time_of(**body)
        taken = server.processor_times()
        run = max(taken, key=lambda thread: taken[thread] - before.get(thread, 0))
        others = [stack.enter_context(Outside(what)) for what in ("hang", "drip") for _ in range(10)]
        hangs = stack.enter_context(Outside("hang"))
        pool = stack.enter_context(ThreadPoolExecutor(16))
        missing = "http://localhost:9/none.wav"
        with server.peak() as peak:
            slow = [server.submit(audio_url=f"{other.url}/a.wav").json() for other in others]
            told = [server.submit(f"?fal_webhook={hangs.url}/{n}", audio_url=missing).json() for n in range(40)]
            token = requests.post(f"{server.fal}/rest/storage/auth/token", json={}, timeout=60).json()["token"]
            head = f"POST /fal/cdn/files/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
            for _ in range(200):
                plain = stack.enter_context(socket.create_connection(("127.0.0.1", server.comfy.port), 60))
                plain.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + b"x" * 1000)
            large = b'{"prompt": "x", "fps": 0, "audio_url": "data:audio/wav;base64,' + b"A" * (100 * 10**6) + b'"}'
            headers = {"Content-Type": "application/json"}
            url = f"{server.fal}/queue/{APP}"
            before = server.processor_times()
            with Poller(f"{server.comfy.url}/system_stats") as poller:
                begun = time.monotonic()
                sent = [pool.submit(requests.post, url, data=large, headers=headers, timeout=600) for _ in range(10)]
                running = pool.submit(server.time_of, **body)
                wait(lambda: running.done() or all(future.done() for future in sent), 600)
                taken = server.processor_times()
                statuses = sorted({future.result().status_code for future in sent})
                bodies = time.monotonic() - begun
                beside = running.result()
            memory = peak()
        for request in (*slow, *told):
            requests.put(request["cancel_url"], timeout=60)
        share = (taken[run] - before[run]) / (sum(taken.values()) - sum(before.values()))
        return {"alone, s": round(alone, 1), "beside, s": round(beside, 1), "bodies, s": round(bodies, 1),
                "the run's share": round(share, 3), "longest answer, s": round(poller.longest, 1),
                "MiB above idle": memory, "the bodies' answers": statuses}  # fmt: skip


# 7. two servers


@attack
def a_second_server(place: Place) -> Figures:
    """A result that is sent but once waits for its reader as a second server starts and ends; so does a run."""
    with place.server() as server:
        once = server.submit(seed=4, sync_mode=True).json()
        server.ended(once)
        with place.server():
            url = once["response_url"]
            survives = requests.get(url, timeout=60).status_code == 200
            running = server.submit(**{**LONG, "num_frames": 97, "sync_mode": True, "audio_url": SOUND}).json()
            wait(lambda: any("step" in line for line in server.lines(running)))
        ended = server.ended(running, 300)
        return {"the result is there": survives, "the run succeeds": ended is not None and "error" not in ended}


# 8. without a key


@attack
def without_a_key(place: Place) -> Figures:
    """What a page in a sandboxed frame, a proxy on this machine and a name that leads here are answered."""
    with place.server() as server:

        def upload(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return requests.post(f"{server.fal}/cdn/files/upload", data=wav(), headers=named, timeout=60).status_code

        host = f"evil.example:{server.comfy.port}"
        return {
            "Origin: null": upload(Origin="null"),
            "a proxy's": upload(X_Forwarded_For="8.8.8.8"),
            "another name": upload(Host=host, Origin=f"http://{host}"),
            "our own": upload(),
        }


# 9. clocks and versions


@attack
def clock_an_hour_back(place: Place) -> Figures:
    """A server is killed, and the next one starts with a clock an hour behind: seconds until the request goes on."""
    if not shutil.which("faketime"):
        return {"skipped": "no faketime on this machine"}
    with place.server(LTX_A2V_LEASE_SECONDS="5") as server:
        request = server.submit(**LONG).json()
        wait(lambda: any("step" in line for line in server.lines(request)))
        server.kill()
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    back = {
        "LD_PRELOAD": str(library),
        "FAKETIME": "-1h",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with place.server(LTX_A2V_LEASE_SECONDS="5", **back) as server:
        seconds = wait(lambda: server.comfy.get("/queue")["queue_running"], 60)
        request["cancel_url"] = f"{server.fal}{request['cancel_url'].partition('/fal')[2]}"
        requests.put(request["cancel_url"], timeout=60)
        return {"goes on after, s": round(seconds, 1)}


@attack
def broken_files(place: Place) -> Figures:
    """A database that is none, and an empty key: tracebacks in the log, and whether the files are as before."""
    with place.server():
        pass
    kept = place.database.read_bytes()
    for path in place.system.glob("requests.sqlite*"):
        path.unlink()
    place.database.write_bytes(b"something else" * 1000)
    with place.server() as server:
        log = server.comfy.log
    same = place.database.read_bytes() == b"something else" * 1000
    place.database.write_bytes(kept)
    (place.system / "webhook_key.pem").write_bytes(b"")
    with place.server() as server:
        key_log = server.comfy.log
        works = server.submit(seed=6).status_code == 200
    return {"tracebacks": log.count("Traceback") + key_log.count("Traceback"), "left alone": same,
            "works with an empty key": works}  # fmt: skip


# 10. small ones


@attack
def small_ones(place: Place) -> Figures:
    """A link named as this year in the output folder, and the prompt of a result that was sent but once and is gone."""
    words = "words that stand nowhere else"
    with place.server() as server:
        once = server.submit(seed=7, sync_mode=True, prompt=words).json()
        server.ended(once)
        requests.get(once["response_url"], timeout=60)
        done = server.submit(seed=8).json()
        server.ended(done)
        graph = requests.get(f"{done['response_url']}/workflow", timeout=60).json()
        elsewhere = place.base / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        link = place.base / "output" / time.strftime("%Y")
        link.symlink_to(elsewhere)
        for node in graph.values():
            node["inputs"].update({"filename_prefix": "%year%/x"} if "filename_prefix" in node["inputs"] else {})
        with suppress(PromptRejected):  # that is right as well
            server.comfy.run(graph)
        link.unlink()
        place.rows("UPDATE requests SET read = read - 700, ended = ended - 4000 WHERE sync_mode = 1")
        wait(lambda: requests.get(once["response_url"], timeout=60).status_code == 410)
        time.sleep(65)
        data = b"".join(path.read_bytes() for path in place.system.glob("requests.sqlite*"))
        return {
            "files outside": len(list(elsewhere.iterdir())),
            "the prompt is in the database": words.encode() in data,
        }


def run(name: str, pack: Path) -> Figures:
    """One attack in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="attack") as folder:
        write_published(Path(folder))
        return ATTACKS[name](Place(Path(folder), pack))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, default=ROOT)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ATTACKS))
    given = parser.parse_args()
    for name in given.names or ATTACKS:
        try:
            figures = run(name, given.pack.resolve())
        except Exception as error:  # what an attack does to a server may be anything
            figures = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
        print(f"| {name} | {', '.join(f'{what}: {found}' for what, found in figures.items())} |", flush=True)


if __name__ == "__main__":
    main()
