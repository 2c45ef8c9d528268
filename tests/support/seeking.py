"""Looking for secrets in whatever a test collected: in the forms that a program could write them in.

secrets = secrets_of(security) | {"typed": b"correct horse"}
assert found(log, secrets) == []
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from zmq.utils import z85

from discoro.security import Security


def secrets_of(security: Security) -> dict[str, bytes]:
    """The master and everything that is derived from it, by what it is. Nothing of it is ever to be seen."""
    server, client = security._server, security._client
    return {
        "master": security._master,
        "server public": z85.decode(server[0]),  # known to holders of the key only: it is the first gate
        "server secret": z85.decode(server[1]),
        "client public": z85.decode(client[0]),
        "client secret": z85.decode(client[1]),
        "mac key": security._mac_key,
    }


def forms(secret: bytes) -> dict[str, bytes]:
    """A secret as it could stand in a text or in bytes."""
    written = {
        "raw": secret,
        "repr": repr(secret)[2:-1].encode(),
        "hex": secret.hex().encode(),
        "HEX": secret.hex().upper().encode(),
        "base32": base64.b32encode(secret).rstrip(b"="),
        "base64": base64.b64encode(secret).rstrip(b"="),
        "urlsafe": base64.urlsafe_b64encode(secret).rstrip(b"="),
        "decimal": str(int.from_bytes(secret, "big")).encode(),
    }
    if len(secret) % 4 == 0:
        written["z85"] = z85.encode(secret)
    return written | {f"{name} in lower case": written[name].lower() for name in ("base32",)}


def found(where: bytes, secrets: Mapping[str, bytes]) -> list[str]:
    """Which secrets stand there, and in which form."""
    return [f"{what} ({form})" for what, secret in secrets.items() for form, text in forms(secret).items() if text in where]
