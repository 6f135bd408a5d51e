"""The key that signs webhooks: an ED25519 key of this installation, made at first use and readable by its owner alone.

Only this file imports `cryptography`, and only when webhooks are used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ltx import versions
from ...ltx.errors import InputError
from ..settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FILE = "webhook_key.pem"


class Signer:
    """Signs webhooks. Errors: InputError if `cryptography` is not installed, or the key's file is damaged or cannot be
    made."""

    def __init__(self, settings: Settings) -> None:
        if wrong := versions.problem(versions.WEBHOOKS):
            raise InputError(f"webhooks: {wrong.rstrip('.')}.")
        try:
            from cryptography.hazmat.primitives import serialization
        except Exception:  # a broken installation raises nearly anything
            raise InputError(f"webhooks: the package cryptography cannot be imported; {versions.remedy()}.") from None
        self._key = _load_key(settings.system / FILE)
        public = self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self._x = _base64url(public)
        # RFC 7638 and RFC 8037: the key's id follows from the key
        thumbprint = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": self._x}, separators=(",", ":"))
        self.key_id = _base64url(hashlib.sha256(thumbprint.encode()).digest())

    @property
    def jwks(self) -> dict[str, Any]:
        """The public key (RFC 7517), for checks of signatures."""
        key = {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.key_id, "x": self._x}
        return {"keys": [key]}

    def headers(self, request_id: str, body: bytes, now: float) -> dict[str, str]:
        """The four `X-Fal-Webhook-…` headers of that body. now: seconds since 1970."""
        timestamp = str(int(now))
        message = "\n".join((request_id, self.key_id, timestamp, hashlib.sha256(body).hexdigest()))
        return {
            "X-Fal-Webhook-Request-Id": request_id,
            "X-Fal-Webhook-User-Id": self.key_id,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": self._key.sign(message.encode("utf-8")).hex(),
        }


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _load_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    remedy = "delete the file, and a new key is made at the next webhook"
    try:
        if not path.exists():
            _make_key(path)
        path.chmod(0o600)
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(f"{path.name}: is empty or damaged; {remedy}.") from None
    except OSError as error:
        raise InputError(
            f"{path.name}: cannot be read or made ({error.strerror}); give this user the rights."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path.name}: is no ED25519 key; {remedy}.")
    return key


def _make_key(path: Path) -> None:
    """Makes the key's file. Errors: OSError."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    part = path.with_name(f".{secrets.token_hex(16)}.part")
    with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(made)
    try:
        os.link(part, path)  # a second server that starts now must keep the first one's key
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(part, path)
    part.unlink(missing_ok=True)
