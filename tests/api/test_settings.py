"""What an administrator sets: from the environment and ComfyUI's folders, with sentences for what is wrong."""

from __future__ import annotations

import dataclasses
import re
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from a2v.api.settings import MIB, Settings, read_settings, system_folder
from a2v.ltx.errors import InputError


def folders(base: Path, **more: Any) -> Any:
    """ComfyUI's module of its folders."""
    names = ("user", "input", "output")
    return SimpleNamespace(**{f"get_{name}_directory": lambda name=name: str(base / name) for name in names}, **more)


def test_nothing_is_set(tmp_path: Path) -> None:
    settings = read_settings(folders(tmp_path), {})
    assert settings == Settings(
        system=tmp_path / "user" / "__ltx_a2v",
        input=tmp_path / "input",
        output=tmp_path / "output",
    )
    assert settings.database.parent == settings.system and settings.heartbeat_seconds == 5


def test_the_folder_is_one_that_comfyui_serves_to_nobody(tmp_path: Path) -> None:
    own = folders(tmp_path, get_system_user_directory=lambda name: str(tmp_path / f"__{name}"))
    assert system_folder(own) == tmp_path / "__ltx_a2v"
    settings = read_settings(folders(tmp_path), {})
    for _ in range(2):
        settings.prepare()
        assert stat.S_IMODE(settings.system.stat().st_mode) == 0o700
        settings.system.chmod(0o755)


GIVEN = {
    "LTX_A2V_API_KEY": (" secret ", "key", "secret"),
    "LTX_A2V_ALLOW_HOSTS": ("a.host, 10.0.0.0/8,", "allowed_hosts", ("a.host", "10.0.0.0/8")),
    "LTX_A2V_PROXIES": ("127.0.0.1, 10.1.0.0/16", "proxies", ("127.0.0.1", "10.1.0.0/16")),
    "LTX_A2V_ORIGINS": ("https://my.page/", "origins", ("https://my.page",)),
    "LTX_A2V_SAFETY": ("require", "require_safety", True),
    "LTX_A2V_EXPIRE_HOURS": ("0.5", "expire_hours", 0.5),
    "LTX_A2V_FORGET_HOURS": ("48", "forget_hours", 48.0),
    "LTX_A2V_HOLD_SECONDS": ("99", "hold_seconds", 10.0),
    "LTX_A2V_LEASE_SECONDS": ("0", "lease_seconds", 1.0),
    "LTX_A2V_MAX_BODY_MB": ("1.5", "max_body", 3 * MIB // 2),
    "LTX_A2V_MAX_MEDIA_MB": ("2", "max_media", 2 * MIB),
    "LTX_A2V_MAX_UPLOAD_MB": ("3", "max_upload", 3 * MIB),
    "LTX_A2V_SHORT_SIDE": ("720", "short_side", 720),
    "LTX_A2V_MAX_MINUTES": ("7.5", "max_minutes", 7.5),
    "LTX_A2V_RAY_ADDRESS": (" auto ", "ray_address", "auto"),
    "LTX_A2V_CLUSTER_PORT": ("8190", "cluster_port", 8190),
    "LTX_A2V_WORKER": ("Yes", "is_worker", True),
}


@pytest.mark.parametrize("name", GIVEN)
def test_each_variable_sets_one_thing(tmp_path: Path, name: str) -> None:
    text, field, value = GIVEN[name]
    plain, found = (read_settings(folders(tmp_path), given) for given in ({}, {name: text}))
    assert found == dataclasses.replace(plain, **{field: value}) != plain
    assert read_settings(folders(tmp_path), {name: "  "}) == plain, "an empty one is none"


def test_every_variable_is_tried_and_documented() -> None:
    root = Path(__file__).resolve().parents[2]
    read = set(re.findall(r'"(LTX_A2V_[A-Z_]+)"', (root / "api" / "settings.py").read_text()))
    assert read == GIVEN.keys()
    assert read <= set(re.findall(r"^\| `(LTX_A2V_[A-Z_]+)`", (root / "docs" / "api.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("text", ["x", "-1", "nan", "inf", "1e999", "10 MB"])
def test_a_number_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"^LTX_A2V_MAX_BODY_MB is '.*': give a number, 0 or more\.$"):
        read_settings(folders(tmp_path), {"LTX_A2V_MAX_BODY_MB": text})


@pytest.mark.parametrize("text", ["65536", "1e9"])
def test_a_port_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"^LTX_A2V_CLUSTER_PORT is .*: give a port, at most 65535"):
        read_settings(folders(tmp_path), {"LTX_A2V_CLUSTER_PORT": text})


@pytest.mark.parametrize("name", ["LTX_A2V_WINDOWS_GB", "LTX_A2V_WINDOWS_DAYS"])
def test_a_limit_of_kept_windows_that_is_no_number_is_told_at_the_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is '20GB': give a number, 0 or more\.$"):
        read_settings(folders(tmp_path), {name: "20GB"})
