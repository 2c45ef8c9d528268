"""Who belongs to the cluster: the cluster key, and the CURVE keys and the greeting MAC made from it.

Never: opens a socket, shows or logs a key, goes on without a key unasked (only `open=True` does that).

How it plays together: `Security.from_options` takes one source of trust (a certificate with its private key,
a typed secret, or the key file, made at first start) and turns it into a master of 64 bytes. From the master
come a CURVE pair for the sockets that listen, one for those that dial, and the key of the MAC: two gates.

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
import secrets
import shlex
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import zmq
from zmq.utils import z85

from discoro.errors import ConfigError, KeyFileError

log = logging.getLogger("discoro.security")

KEY_BYTES = 16  # of a new key: 128 random bits are out of reach of guessing, and short enough to paste
KEY_TEXT = re.compile(rb"(?:[0-9a-fA-F]{2}){16,64}")  # what a key file holds: 128 to 512 bits
FILE_LIMIT = 64 * 1024  # bytes read of any file; a chain of certificates with its private key takes a tenth
SECRET_SHORTEST = 8  # characters; shorter ones stand in every guesser's list, and no scrypt helps
SECRET_WEAK = 16  # characters; below, a warning: one greeting caught by a fake node lets it guess at leisure
MASTER_BYTES = 64
MAC_BYTES = 16  # a forger has one try in 2**128 per connection, and only behind gate 1
ZMQ_OLDEST = (4, 3, 5)  # older ones have holes before the handshake (CVE-2019-13132, CVE-2020-15166)

_OTHERWISE = "Or name another file with --key-file (DISCORO_KEY_FILE), use --secret, or --open for no key."


class Security:
    """The trust of one process: secures its sockets, signs and checks greetings. Made by `from_options`.

    `open`: there is no key. `origin`: where the key came from, in words that hold no secret. `made_now`: this
    very call made the key file. Immutable; printed, it shows `origin` only; pickling or copying it raises
    TypeError.
    """

    __slots__ = ("_client", "_mac_key", "_master", "_server", "made_now", "open", "origin")

    open: bool
    origin: str
    made_now: bool
    _master: bytes
    _server: tuple[bytes, bytes]  # CURVE (public, secret) as Z85, of all sockets that listen
    _client: tuple[bytes, bytes]  # of all sockets that dial
    _mac_key: bytes

    def __init__(self, master: bytes, origin: str, *, made_now: bool = False) -> None:
        """`master`: 64 secret bytes, or b"" for open."""
        values = {
            "open": not master,
            "origin": origin,
            "made_now": made_now,
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
        certfile: str | Path | None = None,
        keyfile: str | Path | None = None,
        open: bool = False,
        environ: Mapping[str, str] = os.environ,
    ) -> Security:
        """The trust that these options ask for; without any, this user's key file, made if there is none.

        `certfile`, `keyfile`: PEM files; the private key (in `certfile` where `keyfile` is None) is the
        cluster's key, and a `secret` beside them is mixed in, so that both are needed. `secret`: 8 characters
        or more; takes about 0.1 s and 32 MiB, once. `key_file`: else DISCORO_KEY_FILE in `environ`, else
        discoro/cluster.key under XDG_CONFIG_HOME or ~/.config.

        Raises KeyFileError where a file with a key cannot be read or made, is open to others, or holds none;
        ConfigError for options that exclude each other, a secret too short, a pair that does not belong
        together, is encrypted or has expired, and a libzmq unfit for strangers. No error shows a secret.
        """
        pair = certfile if certfile is not None else keyfile
        _refuse_several(open, pair, secret, key_file)
        if open:
            return cls(b"", "open: no key")
        refuse_unfit_zmq(zmq.zmq_version_info(), zmq.has("curve"))
        if pair is not None:
            return cls(*_from_pair(certfile, keyfile, secret))
        if secret is not None:
            return cls(_from_secret(secret), "secret")
        path = _key_path(key_file, environ)
        made_now = not os.path.lexists(path) and make_key_file(path)
        origin = f"key {path} (made now)" if made_now else f"key {path}"
        return cls(_from_key_file(path), origin, made_now=made_now)

    @classmethod
    def from_handed_down(cls, text: str) -> Security:
        """What `handed_down` of the node described; ConfigError, without the text, for anything else."""
        if text.strip() == "open":
            return cls(b"", "open: no key")
        master = _hex_bytes(text.encode("ascii", "replace"))
        if master is None or len(master) != MASTER_BYTES:
            raise ConfigError("the key from the node arrived damaged: a worker is started by its node only")
        return cls(master, "key of the node")

    def handed_down(self) -> str:
        """All of it in one line for a worker of this node. Secret: through a pipe, nothing else."""
        return self._master.hex() or "open"

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
        """The 16 bytes that prove that a holder of the key wrote `body`; b"" when open."""
        if self.open:
            return b""
        return hashlib.blake2b(body, key=self._mac_key, digest_size=MAC_BYTES).digest()

    def verify(self, body: bytes, mac: bytes) -> bool:
        """Whether `mac` is that of `body` under this key, in constant time; when open, whether it is b''."""
        return hmac.compare_digest(self.mac(body), mac)

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


def _refuse_several(open: bool, pair: object, secret: object, key_file: object) -> None:
    """One source of trust only: of a secret beside --open, one would have to be ignored without a word."""
    options = {"--open": open or None, "--certfile": pair, "--secret": secret, "--key-file": key_file}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1 and given != ["--certfile", "--secret"]:
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


# --- the key file


def _key_path(key_file: str | Path | None, environ: Mapping[str, str]) -> Path:
    named = key_file if key_file is not None else environ.get("DISCORO_KEY_FILE") or None
    if named is not None:
        return Path(os.path.abspath(os.path.expanduser(named)))
    config = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(config):  # the XDG Base Directory rules: a relative one is ignored
        config = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".config")
    if not os.path.isabs(config):
        raise KeyFileError(f"no home directory to keep the cluster key in: set HOME. {_OTHERWISE}")
    return Path(config, "discoro", "cluster.key")


def make_key_file(path: Path) -> bool:
    """Make a new random key at `path`, mode 0600, its directory 0700; False where there is a file already.

    Of many starters at once exactly one makes it, and a reader finds it whole or not at all: it is written
    aside and linked to its name, which never replaces a file. KeyFileError where that is not possible.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with open(draft, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(secrets.token_hex(KEY_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise KeyFileError(
            f"there is no cluster key {path}, and none can be made ({error.strerror}): "
            f"make the directory writable. {_OTHERWISE}"
        ) from error
    return True


def _from_key_file(path: Path) -> bytes:
    """The master of a key file; without scrypt, for 128 random bits cannot be guessed."""
    key = _hex_bytes(_read_private(path, "cluster key"))
    if key is None:
        raise KeyFileError(
            f"{path} holds no cluster key (32 to 128 hexadecimal digits): copy it from another machine of "
            f"the cluster, or remove it, and a new one is made. {_OTHERWISE}"
        )
    return hashlib.blake2b(key, person=b"discoro-file").digest()


def _hex_bytes(text: bytes) -> bytes | None:
    """The bytes of a key's text; None for other text, and no exception, whose traceback would keep it."""
    text = text.strip()
    return bytes.fromhex(text.decode()) if KEY_TEXT.fullmatch(text) else None


def _read_private(path: Path, what: str) -> bytes:
    """The content of a file that only this user can open; else KeyFileError, which calls it `what`."""
    try:  # O_NONBLOCK: a FIFO would make us wait for whoever writes to it
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            _refuse_unsafe(path, what, os.fstat(file.fileno()))
            return file.read(FILE_LIMIT)
    except OSError as error:
        raise KeyFileError(
            f"the {what} {path} cannot be read ({error.strerror}): check it, and who owns it. {_OTHERWISE}"
        ) from error


def _refuse_unsafe(path: Path, what: str, status: os.stat_result) -> None:
    """Judges the opened file and not its name, so that nobody can put another in its place in between."""
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"the {what} {path} is not a regular file. {_OTHERWISE}")
    if status.st_uid != os.geteuid():
        raise KeyFileError(
            f"the {what} {path} belongs to user id {status.st_uid}, who could run code as you "
            f"(user id {os.geteuid()}): use a copy of your own. {_OTHERWISE}"
        )
    if status.st_mode & 0o077:
        raise KeyFileError(
            f"the {what} {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}), who could run "
            f"code as you: run `chmod 600 {shlex.quote(str(path))}`. Was it read? Use another"
        )


# --- a certificate and its private key


def _from_pair(
    certfile: str | Path | None, keyfile: str | Path | None, secret: str | None
) -> tuple[bytes, str]:
    """(master, origin). The private key counts as the file has it: to be copied, not converted."""
    if certfile is None:
        raise ConfigError("--keyfile needs --certfile, the certificate that belongs to it")
    cert_path = Path(os.path.abspath(certfile))
    key_path = Path(os.path.abspath(keyfile if keyfile is not None else certfile))
    origin = f"certificate {cert_path} (SHA-256 {_fingerprint(cert_path)})"
    _read_private(key_path, "private key")  # for its checks; read again below, so that no traceback holds it
    _check_pair(cert_path, key_path)
    stretched = b"" if secret is None else _from_secret(secret)
    private = _pem_block(_read_private(key_path, "private key"), b"(?:[A-Z]+ )?PRIVATE KEY")
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
        raise ConfigError(
            f"the certificate {certfile} and the private key {keyfile} do not belong together, "
            f"or cannot be used (OpenSSL: {error.reason}): check --certfile and --keyfile"
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
