"""`python -m ltx download` against a hub on this machine that answers as the real one: large files are redirected to
another host, have their SHA-256 in X-Linked-Etag and honour Range; small ones have git's hash; terms are 401 or 403."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from a2v.ltx.models import LTX, MODELS, SETS, Published, named_version
from a2v.ltx.tools import download as tool
from a2v.ltx.versions import Package
from a2v.ltx.weights.lora_file import IC_NAME

ROOT = Path(__file__).resolve().parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HEADER = 128  # bytes of a file's header
MANY = 24_000_000  # bytes: huggingface_hub writes 10 MiB at a time
UPSCALER, GEMMA = MODELS["upscaler"], MODELS["gemma"]


def content(size: int, seed: int = 1) -> bytes:
    """A safetensors file of so many bytes, which holds random numbers."""
    numbers = size - 8 - HEADER
    header = json.dumps({"x": {"dtype": "U8", "shape": [numbers], "data_offsets": [0, numbers]}}).ljust(HEADER)
    return HEADER.to_bytes(8, "little") + header.encode() + random.Random(seed).randbytes(numbers)


@dataclass
class Hub:
    """Files by "owner/name" and path. The rest are faults, by path."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    small: set[str] = field(default_factory=set)  # kept in git itself
    terms: dict[str, int] = field(default_factory=dict)  # repository → the status without a token
    announced: dict[str, int] = field(default_factory=dict)  # a size other than the true one
    sent: dict[str, bytes] = field(default_factory=dict)  # other bytes than the file's
    stall: dict[str, int] = field(default_factory=dict)  # after so many bytes nothing more comes
    drop: dict[str, int] = field(default_factory=dict)  # after so many bytes the connection ends, once
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""
    cdn: str = ""

    def gets(self) -> list[str | None]:
        """The Range of every request that got bytes of a large file."""
        return [wanted for method, path, wanted in self.requests if method == "GET" and path.startswith("/cdn/")]


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlparse(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if path.startswith("/api/models/"):
                self.model(path.removeprefix("/api/models/").split("/revision/")[0])
            elif path.startswith("/cdn/"):
                self.bytes_of(*path.removeprefix("/cdn/").split("/resolve/", 1))
            else:
                repository, rest = path[1:].split("/resolve/", 1)
                self.resolve(repository, rest.split("/", 1)[1])

        def model(self, repository: str) -> None:
            if repository not in hub.files:
                return self.answer(404, X_Error_Code="RepoNotFound")
            names = [{"rfilename": name} for name in hub.files[repository]]
            told = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": names, "private": False}
            self.answer(200, json.dumps({**told, "tags": [], "downloads": 0}).encode(), Content_Type="application/json")

        def resolve(self, repository: str, name: str) -> None:
            hub.tokens.add(self.headers.get("Authorization"))
            if repository not in hub.files:
                return self.answer(404, X_Error_Code="RepoNotFound")
            if repository in hub.terms and not (
                self.headers.get("Authorization") == "Bearer hf_good" or hub.terms[repository] == 200
            ):
                return self.answer(hub.terms[repository], X_Error_Code="GatedRepo")
            if name not in hub.files[repository]:
                return self.answer(404, X_Error_Code="EntryNotFound")
            body = hub.files[repository][name]
            if name in hub.small:
                etag = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
                return self.answer(200, body, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
            self.answer(
                302,
                Location=f"{hub.cdn}/cdn/{repository}/resolve/{name}",
                X_Repo_Commit=COMMIT,
                X_Linked_Etag=f'"{hashlib.sha256(body).hexdigest()}"',
                X_Linked_Size=str(hub.announced.get(name, len(body))),
            )

        def bytes_of(self, repository: str, name: str) -> None:
            body = hub.sent.get(name, hub.files[repository][name])
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            end = hub.stall.get(name) or hub.drop.pop(name, None) or len(body)
            try:
                self.wfile.write(body[start:end])
                self.wfile.flush()
                if name in hub.stall:
                    time.sleep(60)
            except OSError:
                pass
            if end < len(body):
                self.close_connection = True

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    # The same server by another name: a client sends no token to another host.
    hub.url, hub.cdn = (f"http://{name}:{server.server_port}" for name in ("127.0.0.1", "localhost"))
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def start(hub: Hub, models: Path, *arguments: str, token: str | None = None, limit: int = 0) -> subprocess.Popen[str]:
    """limit: KiB that a file may have, 0 for none."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(models.parent / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "ltx", "download", *arguments, "--models", str(models)]
    if limit:
        command = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash", *command]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def download(hub: Hub, models: Path, *arguments: str, token: str | None = None) -> tuple[int, str, str]:
    """Exit status, what was said, and the last line of standard error, which is the sentence where there is one."""
    process = start(hub, models, *arguments, token=token)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, out, (err.strip().splitlines() or [""])[-1]


def one(hub: Hub, model: Published, body: bytes) -> None:
    hub.files.setdefault(model.repository, {})[model.path] = body


def written(models: Path) -> dict[str, int]:
    return {path.relative_to(models).as_posix(): path.stat().st_size for path in models.rglob("*") if path.is_file()}


def test_a_file_comes_into_its_folder_once(hub: Hub, models: Path) -> None:
    one(hub, UPSCALER, content(300_000))
    status, out, err = download(hub, models, "upscaler")
    target = models / "latent_upscale_models" / UPSCALER.name
    assert (status, target.read_bytes()) == (0, content(300_000)), err
    assert written(models) == {f"latent_upscale_models/{UPSCALER.name}": 300_000} and str(target.parent) in out
    before = len(hub.requests)
    status, out, _ = download(hub, models, "upscaler")
    assert status == 0 and f"{target} is there" in out and len(hub.requests) == before


@pytest.mark.parametrize(
    ("key", "repository"),
    [
        ("ingredients", "Lightricks/LTX-2.3-22b-IC-LoRA-Ingredients"),
        ("ingredients-2.5", "Lightricks/LTX-2.5-22b-IC-LoRA-Ingredients"),
        ("motion-track", "Lightricks/LTX-2.3-22b-IC-LoRA-Motion-Track-Control"),
        ("alpha-gen-2.5", "Lightricks/LTX-2.5-22b-IC-LoRA-Alpha-Gen"),
    ],
)
def test_an_ic_lora_is_fetched_out_of_a_repository_of_its_own(
    hub: Hub, models: Path, key: str, repository: str
) -> None:
    model = MODELS[key]
    assert model.repository == repository and IC_NAME.search(model.name) and named_version(model.name) in repository
    one(hub, model, content(1000))
    assert download(hub, models, key)[0] == 0 and written(models) == {f"loras/{model.name}": 1000}


def test_a_set_is_fetched_out_of_its_repositories_folders(hub: Hub, models: Path) -> None:
    """The files of the set for small cards; one of them lies in no subfolder, and one is there already."""
    small = [MODELS[key] for key in SETS["small"]]
    assert {bool(model.below) for model in small} == {True, False} and not any(model.terms for model in small)
    for number, model in enumerate(small):
        one(hub, model, content(1000 + number))
    assert download(hub, models, "upscaler", "upscaler")[0] == 0
    status, out, err = download(hub, models, "small")
    assert status == 0, err
    assert f"{UPSCALER.name} is there" in out and "3 file(s)" in out
    assert written(models) == {f"{model.folder}/{model.name}": 1000 + n for n, model in enumerate(small)}


def test_a_repository_becomes_a_folder_without_what_is_not_read(hub: Hub, models: Path) -> None:
    body = {"config.json": b"{}", "model-00001-of-00001.safetensors": content(50_000), "a/tokenizer.json": b"[1]"}
    hub.files[GEMMA.repository] = {**body, "pytorch_model.bin": b"pickle", "README.md": b"words", "x.gguf": b"no"}
    hub.small = {"config.json", "a/tokenizer.json"}
    assert download(hub, models, "gemma")[0] == 0
    folder = models / "text_encoders" / GEMMA.name
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(body)
    assert all((folder / name).read_bytes() == data for name, data in body.items())
    assert {path.split("/resolve/")[1].split("/")[0] for _, path, _ in hub.requests if path.startswith("/google")} == {
        COMMIT
    }, "all files are of one revision"
    status, out, _ = download(hub, models, "gemma")
    assert status == 0 and f"{folder} is there" in out and len(hub.gets()) == 1
    (folder / "config.json").unlink()
    assert download(hub, models, "gemma")[0] == 0 and (folder / "config.json").read_bytes() == b"{}"


def test_a_killed_download_goes_on_where_it_was(hub: Hub, models: Path) -> None:
    body = content(MANY)
    one(hub, UPSCALER, body)
    hub.stall = {UPSCALER.file: 15_000_000}
    process = start(hub, models, "upscaler")
    folder = models / "latent_upscale_models"
    deadline = time.monotonic() + 60
    while not (parts := [p for p in folder.glob("*.part") if p.stat().st_size]) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    (part,) = parts
    have = part.stat().st_size
    assert 0 < have < MANY and not (folder / UPSCALER.name).exists() and part.read_bytes() == body[:have]
    hub.stall.clear()
    assert download(hub, models, "upscaler")[0] == 0
    assert hub.gets() == [None, f"bytes={have}-"], "the second run asks for the rest only"
    assert written(models) == {f"latent_upscale_models/{UPSCALER.name}": MANY}
    assert (folder / UPSCALER.name).read_bytes() == body


def test_a_dropped_connection_is_taken_up_again(hub: Hub, models: Path) -> None:
    one(hub, UPSCALER, content(MANY))
    hub.drop = {UPSCALER.file: 15_000_000}
    status, _, err = download(hub, models, "upscaler")
    assert status == 0, err
    assert (models / "latent_upscale_models" / UPSCALER.name).read_bytes() == content(MANY)
    assert len(hub.gets()) == 2 and hub.gets()[1] is not None


def test_a_new_version_is_not_glued_to_a_part_of_the_old(hub: Hub, models: Path) -> None:
    folder = models / "latent_upscale_models"
    folder.mkdir()
    old = hashlib.sha256(b"old").hexdigest()
    (folder / f"{UPSCALER.name}.{old[:16]}.part").write_bytes(b"ol")
    one(hub, UPSCALER, content(1000))
    assert download(hub, models, "upscaler")[0] == 0
    assert (folder / UPSCALER.name).read_bytes() == content(1000) and hub.gets() == [None]


def test_other_bytes_than_the_hubs_are_thrown_away(hub: Hub, models: Path) -> None:
    one(hub, UPSCALER, content(1000))
    hub.sent = {UPSCALER.file: content(999) + b"x"}
    status, _, err = download(hub, models, "upscaler")
    assert status == 1 and UPSCALER.name in err and "hash" in err and written(models) == {}
    hub.sent.clear()
    assert download(hub, models, "upscaler")[0] == 0


@pytest.mark.parametrize(("status", "token"), [(401, None), (403, "hf_other")], ids=["no token", "another's"])
def test_terms_to_accept_are_one_sentence(hub: Hub, models: Path, status: int, token: str | None) -> None:
    hub.files[GEMMA.repository] = {"config.json": b"{}", "model.safetensors": content(1000)}
    hub.terms[GEMMA.repository] = status
    code, _, err = download(hub, models, "gemma", token=token)
    assert code == 1 and written(models) == {}
    assert GEMMA.repository in err and f"https://huggingface.co/{GEMMA.repository}" in err and err.endswith(".")
    assert ("hf auth login" in err and "HF_TOKEN" in err) if token is None else "account" in err
    assert download(hub, models, "gemma", token="hf_good")[0] == 0
    assert "Bearer hf_good" in hub.tokens


def test_what_the_hub_has_not_is_one_sentence(hub: Hub, models: Path) -> None:
    status, _, err = download(hub, models, "upscaler")
    assert status == 1 and LTX in err and "missing on the hub" in err and err.endswith(".")
    hub.files[LTX] = {"other.safetensors": b"x"}
    status, _, err = download(hub, models, "upscaler")
    assert status == 1 and UPSCALER.file in err and err.endswith(".")
    hub.url = "http://127.0.0.1:9"  # nothing listens there
    status, _, err = download(hub, models, "upscaler")
    assert status == 1 and LTX in err and err.endswith(".") and written(models) == {}


def test_a_disk_too_small_is_said_before_anything_is_fetched(hub: Hub, models: Path) -> None:
    one(hub, UPSCALER, content(1000))
    hub.announced = {UPSCALER.file: 10**16}
    status, _, err = download(hub, models, "upscaler", "--yes")
    assert status == 1 and "the download takes 10000000.0 GB" in err and " free" in err and err.endswith(".")
    assert hub.gets() == [] and written(models) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="no ulimit there")
def test_a_disk_that_fills_up_on_the_way_keeps_what_came(hub: Hub, models: Path) -> None:
    """The shell's limit on a file's size stands in for the disk's: the system refuses the write all the same."""
    one(hub, UPSCALER, content(MANY))
    process = start(hub, models, "upscaler", limit=12_000)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in err
    said = err.strip().splitlines()[-1]
    assert LTX in said and "File too large" in said and said.endswith(".")
    (left,) = (models / "latent_upscale_models").iterdir()
    assert left.suffix == ".part" and 0 < left.stat().st_size <= 12_000 * 1024
    assert download(hub, models, "upscaler")[0] == 0
    assert (models / "latent_upscale_models" / UPSCALER.name).read_bytes() == content(MANY)


def test_much_is_asked_first(hub: Hub, models: Path) -> None:
    one(hub, UPSCALER, content(1000))
    hub.announced = {UPSCALER.file: 2_000_000_000}
    status, _, err = download(hub, models, "upscaler")
    assert status == 2 and "--yes" in err and "2.0 GB" in err and hub.gets() == [] and written(models) == {}


def test_a_file_of_that_name_and_another_size_is_left_alone(hub: Hub, models: Path) -> None:
    hub.files[GEMMA.repository] = {"config.json": b"{}", "model.safetensors": content(1000)}
    mine = models / "text_encoders" / GEMMA.name / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    status, _, err = download(hub, models, "gemma")
    assert status == 1 and str(mine) in err and mine.read_bytes() == b"mine" and hub.gets() == []


@pytest.mark.parametrize("there", ["cut short", "empty", "a web page", "a link to nothing"])
def test_a_file_that_is_there_but_cannot_be_used_is_told(hub: Hub, models: Path, there: str) -> None:
    """What `doctor` calls missing must not be there for `download`."""
    one(hub, UPSCALER, content(1000))
    mine = models / "latent_upscale_models" / UPSCALER.name
    mine.parent.mkdir()
    if there == "a link to nothing":
        mine.symlink_to(models / "gone.safetensors")
    else:
        mine.write_bytes(
            {"cut short": content(1000)[:500], "empty": b""}.get(there, b"<!doctype html><html>Log in</html>")
        )
    status, out, err = download(hub, models, "upscaler")
    assert status == 1 and str(mine) in err and "delete it or move it" in err and "is there" not in out, err
    mine.unlink()
    assert download(hub, models, "upscaler")[0] == 0 and mine.read_bytes() == content(1000)


def test_a_repository_in_another_folder_of_its_kind_is_not_fetched_again(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    body = {"config.json": b"{}", "model.safetensors": content(50_000)}
    hub.files[GEMMA.repository], hub.small = body, {"config.json"}
    (tmp_path / "extra_model_paths.yaml").write_text("big:\n  base_path: disk\n  text_encoders: te\n")
    mine = tmp_path / "disk" / "te" / GEMMA.name
    mine.mkdir(parents=True)
    (mine / "config.json").write_bytes(body["config.json"])
    assert download(hub, models, "gemma")[0] == 0
    assert (mine / "model.safetensors").read_bytes() == body["model.safetensors"] and written(models) == {}
    status, out, _ = download(hub, models, "gemma")
    assert status == 0 and f"{mine} is there" in out and len(hub.gets()) == 1 and written(models) == {}


def test_an_empty_file_of_a_repository_is_made(hub: Hub, models: Path) -> None:
    body = {"config.json": b"{}", "model.safetensors": content(1000), "added.json": b""}
    hub.files[GEMMA.repository], hub.small = body, {"config.json", "added.json"}
    status, _, err = download(hub, models, "gemma")
    assert status == 0, err
    assert written(models) == {f"text_encoders/{GEMMA.name}/{name}": len(data) for name, data in body.items()}


@pytest.mark.parametrize("name", ["../out.json", "/out.json", r"..\out.json", r"a\..\..\out.json", r"C:\out.json"])
def test_a_repository_that_names_a_file_outside_its_folder_is_refused(hub: Hub, models: Path, name: str) -> None:
    """On Windows a backslash ends a folder's name, too."""
    hub.files[GEMMA.repository] = {name: b"{}"}
    status, _, err = download(hub, models, "gemma")
    assert status == 1 and "outside its folder" in err and not written(models)


def test_a_folder_that_cannot_be_read_is_one_sentence(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = models / "text_encoders" / GEMMA.name / "config.json"

    def is_file(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", is_file)
    monkeypatch.setattr(tool.models, "folders", lambda _: {"text_encoders": [models / "text_encoders"]})
    assert tool.main(["gemma", "--models", str(models)], print) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{locked}: cannot be read") and "Permission denied" in said


@pytest.mark.parametrize("wrong", ["missing", "too old", "broken"])
def test_a_package_that_is_not_as_needed_is_one_sentence(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    if wrong == "broken":
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    else:
        have = Package("huggingface_hub", ">=0.34", {"missing": None, "too old": "0.1"}[wrong])
        monkeypatch.setattr(tool.versions, "installed", lambda: iter([have]))
    assert tool.main(["upscaler", "--models", str(models)], print) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("huggingface_hub") and "requirements.txt" in said


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_a_file_whose_hash_another_download_checks_is_left_to_it(hub: Hub, models: Path) -> None:
    import fcntl

    body = content(1000)
    one(hub, UPSCALER, body)
    part = models / "latent_upscale_models" / f"{UPSCALER.name}.{hashlib.sha256(body).hexdigest()[:16]}.part"
    part.parent.mkdir()
    part.write_bytes(body)
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        status, _, err = download(hub, models, "upscaler")
    assert status == 1 and "another download" in err and part.read_bytes() == body
    assert download(hub, models, "upscaler")[0] == 0 and not hub.gets()


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_two_downloads_of_one_file_do_not_mix(hub: Hub, models: Path) -> None:
    one(hub, UPSCALER, content(MANY))
    hub.stall = {UPSCALER.file: 15_000_000}
    first = start(hub, models, "upscaler")
    folder = models / "latent_upscale_models"
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size for p in folder.glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.05)
    status, _, err = download(hub, models, "upscaler")
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert status == 1 and "another download" in err
    assert first.returncode == 130 and "the same command continues the download" in said and "Traceback" not in said


def test_two_downloads_of_one_file_do_not_mix_on_windows_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no flock, and several processes may write to a file there. Its temporary files vanish when they are
    closed, which no other system does."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(os, "O_TEMPORARY", 0, raising=False)
    wanted = tool.Wanted(UPSCALER, tmp_path / UPSCALER.name, "", "0" * 64, 10)
    with wanted.part.open("ab") as part, tool._locked(part, wanted):
        with pytest.raises(tool.Failed, match="another download of it is running"), tool._locked(part, wanted):
            raise AssertionError("it was locked twice")
        assert len(list(tmp_path.iterdir())) == 2
    next(tmp_path.glob("*.lock")).unlink()
    with tool._locked(None, wanted):
        pass


def test_extra_model_paths_are_used(hub: Hub, models: Path, tmp_path: Path) -> None:
    (tmp_path / "extra_model_paths.yaml").write_text(
        "big:\n  base_path: disk\n  is_default: true\n  latent_upscale_models: |\n    up\n    more\n"
    )
    one(hub, UPSCALER, content(1000))
    assert download(hub, models, "upscaler")[0] == 0
    assert (tmp_path / "disk" / "more" / UPSCALER.name).is_file()  # ComfyUI puts each default before the last
    status, out, _ = download(hub, models, "upscaler")
    assert status == 0 and "is there" in out and len(hub.gets()) == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(("nonsense",), "'nonsense'"), (("upscaler", "--models", "/no/such/folder"), "/no/such/folder")],
)
def test_what_cannot_be_asked_for_is_bad_input(hub: Hub, models: Path, arguments: tuple, part: str) -> None:
    process = start(hub, models, *arguments) if "--models" not in arguments else None
    if process is None:
        command = [sys.executable, "-m", "ltx", "download", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and part in err and "Traceback" not in err
