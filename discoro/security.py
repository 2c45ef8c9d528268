"""Who belongs to the cluster: the cluster key, and the CURVE keys and the greeting MAC made from it.

Never: opens a socket, shows or logs a key, goes on without a key unasked (only `open=True` does that).

How it plays together: `Security.from_options` takes one source of trust (a certificate with its private key,
a typed secret, or the key file, made at first start) and turns it into a master of 64 bytes. From the master
come a CURVE pair for the sockets that listen, one for those that dial, and the key of the MAC: two gates. While
the cluster's key is being changed, a `Security` has the `following` one beside it, and both are accepted.

  1. CURVE, in libzmq's own thread. The public key of the listening side is derived as well, is never sent and
     never shown: who does not know it cannot finish a handshake. So no ZAP handler is needed; that is Python,
     and would keep newcomers waiting for as long as a computation holds the interpreter.
  2. The MAC over the greeting, checked before anything else in it is believed.

Whoever has the key may run code as the user of every worker: it keeps strangers out, and holders not apart.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import zmq
from zmq.utils import z85

from discoro.errors import ConfigError, KeyFileError
from discoro.keyfile import (
    FILE_LIMIT,
    KeyFile,
    hex_bytes,
    key_path,
    make_key_file,
    read_key_file,
    read_private,
    time_text,
)

log = logging.getLogger("discoro.security")

SECRET_SHORTEST = 8  # characters; shorter ones stand in every guesser's list, and no scrypt helps
SECRET_WEAK = 16  # characters; below, a warning: one greeting caught by a fake node lets it guess at leisure
MASTER_BYTES = 64
_NEVER = float("inf")  # a worker learns from its node when a key takes over
MAC_BYTES = 16  # a forger has one try in 2**128 per connection, and only behind gate 1
ZMQ_OLDEST = (4, 3, 5)  # older ones have holes before the handshake (CVE-2019-13132, CVE-2020-15166)


class Secret(str):
    """A text that somebody typed; where variables are shown, in a traceback or as part of something else, it is not."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<Secret>"


class Security:
    """The trust of one process: secures its sockets, signs and checks greetings. Made by `from_options`.

    `open`: there is no key. `origin`: where the key came from, in words that hold no secret. `made_now`: this
    very call made the key file. `path`: that file, None for other sources. `following`: while the cluster's key is
    being changed, the next one, which others may use already; it takes over at `since`, seconds of Unix time.
    Immutable; printed, it shows `origin` only; pickling or copying it raises TypeError.
    """

    __slots__ = ("_client", "_mac_key", "_master", "_server", "following", "made_now", "open", "origin", "path", "since")

    open: bool
    origin: str
    made_now: bool
    path: Path | None
    following: Security | None
    since: float
    _master: bytes
    _server: tuple[bytes, bytes]  # CURVE (public, secret) as Z85, of all sockets that listen
    _client: tuple[bytes, bytes]  # of all sockets that dial
    _mac_key: bytes

    def __init__(
        self,
        master: bytes,
        origin: str,
        *,
        made_now: bool = False,
        path: Path | None = None,
        following: Security | None = None,
        since: float = 0.0,
    ) -> None:
        """`master`: 64 secret bytes, or b"" for open."""
        values = {
            "open": not master,
            "origin": origin,
            "made_now": made_now,
            "path": path,
            "following": following,
            "since": since,
            "_master": master,
            "_server": _curve_pair(master, b"discoro-server") if master else (b"", b""),
            "_client": _curve_pair(master, b"discoro-client") if master else (b"", b""),
            "_mac_key": _derived(master, b"discoro-greeting") if master else b"",
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_options(
        cls,
        *,
        key_file: str | Path | None = None,
        secret: str | None = None,
        secret_file: str | Path | None = None,
        certfile: str | Path | None = None,
        keyfile: str | Path | None = None,
        open: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> Security:
        """The trust that these options ask for; without any, DISCORO_SECRET, else this user's key file, made if there is none.

        `certfile`, `keyfile`: PEM files; the private key (in `certfile` where `keyfile` is None) is the
        cluster's key, and a secret beside them is mixed in, so that both are needed. `secret`: 8 characters
        or more; takes about 0.1 s and 32 MiB, once. `secret_file`: a file that holds one, which only this user may
        open. `key_file`: else DISCORO_KEY_FILE in `environ`, else discoro/cluster.key under XDG_CONFIG_HOME or
        ~/.config. What is given here beats what stands in `environ`.

        Raises KeyFileError where a file with a key cannot be read or made, is open to others, or holds none;
        ConfigError for options that exclude each other, a secret too short, a pair that does not belong
        together, is encrypted or has expired, and a libzmq unfit for strangers. No error shows a secret.
        """
        secret = None if secret is None else Secret(secret)
        pair = certfile if certfile is not None else keyfile
        _refuse_several(open, pair, secret, secret_file, key_file)
        if open:
            return cls(b"", "open: no key")
        refuse_unfit_zmq(zmq.zmq_version_info(), zmq.has("curve"))
        origin = "secret"
        if secret_file is not None:
            origin = f"secret {os.path.abspath(os.path.expanduser(secret_file))}"
            secret = _secret_in(Path(os.path.abspath(os.path.expanduser(secret_file))))
        elif secret is None and pair is None and key_file is None:
            origin = "secret (DISCORO_SECRET)"
            secret = _secret_of(os.environ if environ is None else environ)
        if pair is not None:
            return cls(*_from_pair(certfile, keyfile, secret))
        if secret is not None:
            return cls(_from_secret(secret), origin)
        path = key_path(key_file, os.environ if environ is None else environ)
        made_now = not os.path.lexists(path) and make_key_file(path)
        return cls.from_key_file(path, now=time.time(), made_now=made_now)

    @classmethod
    def from_key_file(cls, path: Path, *, now: float, made_now: bool = False) -> Security:
        """The trust of a key file that is there, at that Unix time; with the key that follows, while that is being changed.

        KeyFileError as `from_options`.
        """
        return cls._of_keys(read_key_file(path).at(now), f"key {path}", path, made_now)

    @classmethod
    def _of_keys(cls, keys: KeyFile, origin: str, path: Path, made_now: bool = False) -> Security:
        following = None
        if keys.following is not None:
            origin += f" (a new key takes over at {time_text(keys.since)})"
            following = cls(_from_key(keys.following), f"new key {path}", path=path)
        origin += " (made now)" if made_now else ""
        return cls(_from_key(keys.key), origin, made_now=made_now, path=path, following=following, since=keys.since)

    def at(self, now: float) -> Security:
        """What it is at that Unix time: once `since` has come, the following key is the only one."""
        if self.following is None or now < self.since:
            return self
        origin = f"key {self.path}" if self.path else self.origin
        return Security(self.following._master, origin, path=self.path)

    @classmethod
    def from_handed_down(cls, text: str) -> Security:
        """What `handed_down` of the node described; ConfigError, without the text, for anything else."""
        if text.strip() == "open":
            return cls(b"", "open: no key")
        masters = [hex_bytes(each.encode("ascii", "replace")) for each in text.split()]
        if not 0 < len(masters) <= 2 or any(master is None or len(master) != MASTER_BYTES for master in masters):
            raise ConfigError("the key from the node arrived damaged: a worker is started by its node only")
        made = [cls(master, "key of the node") for master in masters if master is not None]
        return made[0] if len(made) == 1 else cls(made[0]._master, made[0].origin, following=made[1], since=_NEVER)

    def handed_down(self) -> str:
        """All of it in one line for a worker of this node, which is told anew when it changes. Secret: through a pipe or an
        encrypted link, nothing else.
        """
        return " ".join(each._master.hex() for each in self.accepted) or "open"

    @property
    def accepted(self) -> list[Security]:
        """This key and the following one, as far as there are any: what others may come with."""
        return [each for each in (self, self.following) if each is not None and not each.open]

    def same_key(self, other: Security | None) -> bool:
        """Whether the other stands for the same key (or both are open), whatever follows it."""
        return other is not None and hmac.compare_digest(self._master, other._master)

    def same_trust(self, other: Security) -> bool:
        """Whether the other stands for the same key, followed by the same one at the same time."""
        if self.following is None or other.following is None:
            return self.same_key(other) and self.following is other.following
        return self.same_key(other) and self.following.same_key(other.following) and self.since == other.since

    def secure_server(self, socket: zmq.Socket[Any]) -> None:
        """Give a socket that listens its CURVE options; before `bind`, which reads them. Open: nothing."""
        if self.open:
            return
        socket.curve_publickey, socket.curve_secretkey = self._server
        socket.curve_server = True

    def secure_client(self, socket: zmq.Socket[Any]) -> None:
        """Give a socket that dials its CURVE options; before `connect`. Open: nothing."""
        if self.open:
            return
        socket.curve_publickey, socket.curve_secretkey = self._client
        socket.curve_serverkey = self._server[0]

    def mac(self, body: bytes) -> bytes:
        """What proves that a holder of the key wrote `body`: 16 bytes for each key accepted here; b"" when open."""
        return b"".join(each._mac(body) for each in self.accepted)

    def verify(self, body: bytes, mac: bytes) -> bool:
        """Whether `mac` is of `body` under a key accepted here, in constant time; when open, whether it is b''."""
        if self.open:
            return not mac
        if len(mac) not in (MAC_BYTES, 2 * MAC_BYTES):
            return False
        theirs = [mac[at : at + MAC_BYTES] for at in range(0, len(mac), MAC_BYTES)]
        ours = [each._mac(body) for each in self.accepted]
        return sum(hmac.compare_digest(one, other) for one in ours for other in theirs) > 0

    def _mac(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, key=self._mac_key, digest_size=MAC_BYTES).digest()

    def __repr__(self) -> str:
        return f"<Security {self.origin}>"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Security is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Security is immutable: {name} cannot be deleted")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("Security holds the cluster key: it cannot be pickled or copied")


# --- from the master to the keys


def _derived(master: bytes, role: bytes) -> bytes:
    """32 bytes for one role, telling nothing about those of another; any 32 bytes are a CURVE secret key."""
    return hashlib.blake2b(master, digest_size=32, person=role).digest()


def _curve_pair(master: bytes, role: bytes) -> tuple[bytes, bytes]:
    secret_key = z85.encode(_derived(master, role))
    return zmq.curve_public(secret_key), secret_key


def refuse_unfit_zmq(version: tuple[int, int, int], has_curve: bool) -> None:
    """ConfigError where libzmq was built without CURVE, or is too old to face strangers."""
    if not has_curve:
        raise ConfigError("this pyzmq has no CURVE: run `pip install --force-reinstall pyzmq`, or use --open")
    if version < ZMQ_OLDEST:
        have, want = (".".join(map(str, each)) for each in (version, ZMQ_OLDEST))
        raise ConfigError(f"libzmq {have} has known holes, {want} is needed: `pip install --upgrade pyzmq`")


def _refuse_several(open: bool, pair: object, secret: object, secret_file: object, key_file: object) -> None:
    """One source of trust only: of a secret beside --open, one would have to be ignored without a word."""
    options = {
        **{"--open": open or None, "--certfile": pair, "--secret": secret},
        **{"--secret-file": secret_file, "--key-file": key_file},
    }
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1 and given not in (["--certfile", "--secret"], ["--certfile", "--secret-file"]):
        raise ConfigError(f"{' and '.join(given)} exclude each other: give one of them")


# --- a typed secret


def _from_secret(secret: str) -> bytes:
    """The master of what somebody typed; scrypt, since that can be guessed: 0.1 s and 32 MiB a guess."""
    if len(secret) < SECRET_SHORTEST:
        raise ConfigError(
            f"the secret has {len(secret)} characters, at least {SECRET_SHORTEST} are needed: "
            "choose a longer one, or leave it out and use the key file"
        )
    if len(secret) < SECRET_WEAK:
        log.warning("the secret is short: a patient guesser finds it; %d characters are better", SECRET_WEAK)
    try:
        typed = secret.encode()
    except UnicodeEncodeError:  # it carries the secret: not chained
        raise ConfigError("the secret is not valid text: use a UTF-8 terminal, or plain ASCII") from None
    return hashlib.scrypt(typed, salt=b"discoro/v1", n=2**15, r=8, p=1, maxmem=2**26, dklen=MASTER_BYTES)


def _secret_in(path: Path) -> Secret:
    """The secret in a file, without the end of its line."""
    try:
        return Secret(read_private(path, "secret file").decode().rstrip("\r\n"))
    except UnicodeDecodeError:  # it carries the secret: not chained
        raise KeyFileError(f"the secret file {path} is not valid text: write it in UTF-8") from None


def _secret_of(environ: Mapping[str, str]) -> Secret | None:
    """DISCORO_SECRET, unless it is empty. ConfigError where a key file is named there too: one would be ignored."""
    secret, key_file = Secret(environ.get("DISCORO_SECRET", "")), environ.get("DISCORO_KEY_FILE")
    del environ  # of which a traceback that shows variables would show everything
    if secret and key_file:
        raise ConfigError("DISCORO_SECRET and DISCORO_KEY_FILE exclude each other: unset one of them")
    return secret or None


def _from_key(key: bytes) -> bytes:
    """The master of a key as key files have it; without scrypt, for 128 random bits cannot be guessed."""
    return hashlib.blake2b(key, person=b"discoro-file").digest()


# --- a certificate and its private key


def _from_pair(certfile: str | Path | None, keyfile: str | Path | None, secret: str | None) -> tuple[bytes, str]:
    """(master, origin). The private key counts as the file has it: to be copied, not converted."""
    if certfile is None:
        raise ConfigError("--keyfile needs --certfile, the certificate that belongs to it")
    cert_path = Path(os.path.abspath(certfile))
    key_path = Path(os.path.abspath(keyfile if keyfile is not None else certfile))
    origin = f"certificate {cert_path} (SHA-256 {_fingerprint(cert_path)})"
    read_private(key_path, "private key")  # for its checks; read again below, so that no traceback holds it
    _check_pair(cert_path, key_path)
    stretched = b"" if secret is None else _from_secret(secret)
    private = _pem_block(read_private(key_path, "private key"), b"(?:[A-Z]+ )?PRIVATE KEY")
    if private is None:
        raise KeyFileError(f"the private key {key_path} has an unknown form: use an RSA or EC key as PEM")
    master = hashlib.blake2b(private, key=stretched, person=b"discoro-pair").digest()
    return master, f"{origin} and secret" if stretched else origin


def _fingerprint(certfile: Path) -> str:
    """The first 16 hexadecimal digits of the certificate's SHA-256, for people to compare."""
    try:
        with open(certfile, "rb") as file:
            certificate = _pem_block(file.read(FILE_LIMIT), b"CERTIFICATE")
    except OSError as error:
        raise ConfigError(f"the certificate {certfile} cannot be read ({error.strerror})") from error
    if certificate is None:
        raise ConfigError(f"{certfile} holds no certificate in PEM form: check --certfile")
    return hashlib.sha256(certificate).hexdigest()[:16]


def _pem_block(text: bytes, label: bytes) -> bytes | None:
    """The DER bytes of the first block with that label (RFC 7468), or None."""
    found = re.search(rb"-----BEGIN " + label + rb"-----\s([A-Za-z0-9+/=\s]+)-----END ", text)
    try:
        return base64.b64decode(found[1]) if found else None
    except binascii.Error:
        return None


# What OpenSSL calls the private key of another certificate; the last two where the two are not even of one kind (RSA, EC).
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


def _check_pair(certfile: Path, keyfile: Path) -> None:
    """ConfigError for a pair that does not belong together, an encrypted key, an expired certificate."""

    def no_password() -> NoReturn:  # without this OpenSSL would ask on the terminal
        raise ConfigError(
            f"the private key {keyfile} is encrypted, and nobody is there to type its password: "
            "store it decrypted (`openssl pkey -in OLD -out NEW`), with mode 0600"
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certfile, keyfile, password=no_password)
    except ssl.SSLError as error:
        what = "do not belong together" if error.reason in _MISMATCHES else "cannot be used"
        raise ConfigError(
            f"the certificate {certfile} and the private key {keyfile} {what} "
            f"(OpenSSL: {error.reason}): check --certfile and --keyfile"
        ) from error
    if _expired(context, certfile):
        raise ConfigError(f"the certificate {certfile} has expired: make a new pair, copy it to all machines")


def _expired(context: ssl.SSLContext, certfile: Path) -> bool:
    """Whether OpenSSL calls the certificate of `context` expired: asked by a TLS handshake in memory."""
    judge = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    judge.check_hostname = False
    judge.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trusted itself, whoever issued it
    judge.load_verify_locations(certfile)
    to_judge, from_judge = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = judge.wrap_bio(to_judge, from_judge)
    showing = context.wrap_bio(from_judge, to_judge, server_side=True)
    for side in (asking, showing, asking):  # hello, certificate, verdict
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_code == 10  # X509_V_ERR_CERT_HAS_EXPIRED; issuer and purpose do not matter
        except ssl.SSLError:
            return False  # an algorithm that TLS does not take makes no worse a key
    return False
