"""An administrator's settings, read once from the environment and ComfyUI's folders. No other file reads either."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ltx.diffusion.kept import DEFAULTS
from ..ltx.errors import InputError

PREFIX = "/fal"
SUBFOLDER = "ltx_a2v_api"
"""The subfolder of ComfyUI's input and output folders in which the API writes and deletes, and nowhere else."""

MIB = 2**20
LAST_PORT = 65535


@dataclass(frozen=True)
class Settings:
    """Folders, the key, trusted hosts, and limits in bytes and seconds.

    system: the folder of the database, uploads and keys; ComfyUI serves nothing below it. key: None opens the API to
    this machine alone. allowed_hosts: private hosts, addresses or networks (CIDR) that media and webhooks may use.
    origins: of browser pages that may call the API. proxies: addresses or networks of reverse proxies that this server
    believes about protocol, host and client. expire_hours: 0 keeps results for ever. forget_hours: the same for the
    requests themselves; 0 is twice expire_hours.
    """

    system: Path
    input: Path
    output: Path
    key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    require_safety: bool = False
    short_side: int = 1080  # pixels of videos whose application has no input for their size
    max_minutes: float = 45  # of sound of a film in windows; the engine makes no longer ones
    expire_hours: float = 0
    forget_hours: float = 0
    max_body: int = 128 * MIB  # bytes of a JSON request with its data URIs
    max_media: int = 512 * MIB  # bytes of one file that a request names
    max_upload: int = 2048 * MIB
    max_inline: int = 64 * MIB  # bytes of a result as a data URI
    inline_unread_seconds: float = 3600  # how long a sync_mode result waits for its first reader
    inline_read_seconds: float = 600  # how long it stays after that
    fetch_seconds: float = 120
    webhook_seconds: float = 10
    hold_seconds: float = 2.0  # how long an answer waits for news if its poller knows the last ones
    lease_seconds: float = 30  # after which a silent server counts as dead
    prefix: str = PREFIX
    ray_address: str | None = None  # the cluster whose head this server is
    cluster_port: int = 0  # at which its workers get media and leave results; 0: any free one
    is_worker: bool = False  # takes orders from the head of a cluster

    @property
    def database(self) -> Path:
        return self.system / "requests.sqlite"

    @property
    def expire_seconds(self) -> float:
        """Seconds from a request's end until its files are deleted; 0: never. Forgetting a request deletes them,
        too."""
        return 3600 * min(filter(None, (self.expire_hours, self.forget_hours)), default=0.0)

    @property
    def forget_seconds(self) -> float:
        """Seconds from a request's end until it is deleted with its log and graph; 0: never."""
        return 3600 * (self.forget_hours or 2 * self.expire_hours)

    @property
    def heartbeat_seconds(self) -> float:
        return self.lease_seconds / 6

    @property
    def input_folder(self) -> Path:
        """The folder of requests' media, where the graph's loaders find them."""
        return self.input / SUBFOLDER

    @property
    def passing_folder(self) -> Path:
        """The folder of results that are sent once. ComfyUI's temp folder is unfit: each server's start and end empties
        it."""
        return self.system / "passing"

    @property
    def output_folder(self) -> Path:
        return self.output / SUBFOLDER

    def prepare(self) -> None:
        """Creates the system folder, readable by this user alone. Errors: InputError if that is impossible."""
        try:
            self.system.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.system.chmod(0o700)
            self.passing_folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(
                f"{self.system.name}: the folder cannot be used ({reason}); give this user the rights to it."
            ) from None


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"{name} is {text!r}: give a number, 0 or more.")
    return value


def _port(environment: Mapping[str, str], name: str, default: int) -> int:
    port = _number(environment, name, default)
    if port > LAST_PORT:
        raise InputError(f"{name} is {port:g}: give a port, at most {LAST_PORT}, or 0 for any free one.")
    return int(port)


def system_folder(folder_paths: Any) -> Path:
    """A folder that ComfyUI serves to nobody: a name that begins with two underscores is no user's."""
    own = getattr(folder_paths, "get_system_user_directory", None)
    return Path(own("ltx_a2v") if own else Path(folder_paths.get_user_directory(), "__ltx_a2v"))


def read_settings(folder_paths: Any, environment: Mapping[str, str] = os.environ) -> Settings:
    """Reads the settings. folder_paths: ComfyUI's module. Errors: InputError for a number that is none."""
    defaults = Settings
    for name, usual in DEFAULTS.items():  # those of kept windows, which are read when a film is made
        _number(environment, name, usual)
    return Settings(
        system=system_folder(folder_paths),
        input=Path(folder_paths.get_input_directory()),
        output=Path(folder_paths.get_output_directory()),
        key=environment.get("LTX_A2V_API_KEY", "").strip() or None,
        allowed_hosts=_list(environment.get("LTX_A2V_ALLOW_HOSTS", "")),
        origins=tuple(origin.rstrip("/") for origin in _list(environment.get("LTX_A2V_ORIGINS", ""))),
        require_safety=environment.get("LTX_A2V_SAFETY") == "require",
        short_side=max(int(_number(environment, "LTX_A2V_SHORT_SIDE", defaults.short_side)), 64),
        max_minutes=_number(environment, "LTX_A2V_MAX_MINUTES", defaults.max_minutes),
        proxies=_list(environment.get("LTX_A2V_PROXIES", "")),
        expire_hours=_number(environment, "LTX_A2V_EXPIRE_HOURS", defaults.expire_hours),
        forget_hours=_number(environment, "LTX_A2V_FORGET_HOURS", defaults.forget_hours),
        hold_seconds=min(_number(environment, "LTX_A2V_HOLD_SECONDS", defaults.hold_seconds), 10.0),
        lease_seconds=max(_number(environment, "LTX_A2V_LEASE_SECONDS", defaults.lease_seconds), 1.0),
        max_body=int(_number(environment, "LTX_A2V_MAX_BODY_MB", defaults.max_body / MIB) * MIB),
        max_media=int(_number(environment, "LTX_A2V_MAX_MEDIA_MB", defaults.max_media / MIB) * MIB),
        max_upload=int(_number(environment, "LTX_A2V_MAX_UPLOAD_MB", defaults.max_upload / MIB) * MIB),
        ray_address=environment.get("LTX_A2V_RAY_ADDRESS", "").strip() or None,
        cluster_port=_port(environment, "LTX_A2V_CLUSTER_PORT", defaults.cluster_port),
        is_worker=environment.get("LTX_A2V_WORKER", "").strip().lower() in ("1", "true", "yes"),
    )
