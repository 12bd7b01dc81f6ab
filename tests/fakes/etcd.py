"""An etcd that is not noray's: real, started by a test, with users or behind certificates of its own authority."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT, USER = ("root", "root-7c1f-pw"), ("dynamo", "dynamo-9e2b-pw")
PROGRAM = str(found) if (found := Path(sys.executable).with_name("etcd")).exists() else shutil.which("etcd")
READY_S = 30.0


class OthersEtcd:
    """Inside `with`: it is up.

    `users`: it wants a login, and USER may do what Dynamo does. `tls`: it wants a client's certificate.
    """

    def __init__(
        self, place: Path, ports: list[int], address: str = "127.0.0.1", *, users: bool = False, tls: bool = False
    ) -> None:
        """`ports`: for clients and for itself."""
        self.place = place
        self.certificates = Certificates(place / "certificates", address) if tls else None
        self.url = f"{'https' if tls else 'http'}://{address}:{ports[0]}"
        self._users, self._peer = users, f"http://{address}:{ports[1]}"
        self._process: subprocess.Popen[bytes] | None = None
        self._token = ""

    def __enter__(self) -> OthersEtcd:
        self.start()
        if self._users:
            self._make_users()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        assert PROGRAM is not None
        argv = [PROGRAM, "--name", "theirs", "--data-dir", str(self.place / "data")]
        argv += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url, "--listen-peer-urls", self._peer]
        argv += ["--initial-advertise-peer-urls", self._peer, "--initial-cluster", f"theirs={self._peer}"]
        if self.certificates is not None:
            argv += ["--client-cert-auth", "--trusted-ca-file", str(self.certificates.ca)]
            argv += ["--cert-file", str(self.certificates.server), "--key-file", str(self.certificates.server_key)]
        with (self.place / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        end = time.monotonic() + READY_S
        while not self._healthy():
            said = (self.place / "etcd.log").read_text()[-2000:]
            assert self._process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def login(self) -> dict[str, str]:
        """What an env_file says of it."""
        if self.certificates is not None:
            own = self.certificates
            return {
                "ETCD_AUTH_CA": str(own.ca),
                "ETCD_AUTH_CLIENT_CERT": str(own.client),
                "ETCD_AUTH_CLIENT_KEY": str(own.client_key),
            }
        return dict(zip(("ETCD_AUTH_USERNAME", "ETCD_AUTH_PASSWORD"), USER, strict=True)) if self._users else {}

    # --- as its owner -----------------------------------------------------------------------------------------------------

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": self._token} if self._token else {})
        asked = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(asked, timeout=10, context=self._context) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def put(self, key: str, value: str) -> None:
        self.post("/v3/kv/put", key=_64(key), value=_64(value))

    def all(self) -> dict[str, str]:
        found = self.post("/v3/kv/range", key=_64("\0"), range_end=_64("\0")).get("kvs", [])
        return {_text(kv["key"]): _text(kv.get("value", "")) for kv in found}

    def grant(self, prefix: str) -> None:
        """USER may read and write what begins so."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        self.post("/v3/auth/role/grant", name="dynamo", perm={"permType": 2, "key": _64(prefix), "range_end": _64(end)})

    def _make_users(self) -> None:
        self.post("/v3/auth/role/add", name="root")
        self.post("/v3/auth/role/add", name="dynamo")
        for prefix in ("v1/", "noray/"):
            self.grant(prefix)
        for (name, password), role in ((ROOT, "root"), (USER, "dynamo")):
            self.post("/v3/auth/user/add", name=name, password=password)
            self.post("/v3/auth/user/grant", user=name, role=role)
        self.post("/v3/auth/enable")
        self._token = self.post("/v3/auth/authenticate", name=ROOT[0], password=ROOT[1])["token"]

    @property
    def _context(self) -> ssl.SSLContext | None:
        if self.certificates is None:
            return None
        context = ssl.create_default_context(cafile=str(self.certificates.ca))
        context.load_cert_chain(self.certificates.client, self.certificates.client_key)
        return context

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5, context=self._context) as answer:
                return bool(json.loads(answer.read())["health"] == "true")
        except (OSError, ValueError):
            return False


class Certificates:
    """An authority, a server and a client, as PEM files."""

    def __init__(self, place: Path, address: str) -> None:
        place.mkdir()
        self.ca, self.server, self.client = (place / f"{name}.pem" for name in ("ca", "server", "client"))
        self.server_key, self.client_key = place / "server.key", place / "client.key"
        authority, name = ec.generate_private_key(ec.SECP256R1()), _name("authority")
        _certificate(self.ca, name, name, authority.public_key(), authority, x509.BasicConstraints(ca=True, path_length=None))
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        for file, key_file in ((self.server, self.server_key), (self.client, self.client_key)):
            key = ec.generate_private_key(ec.SECP256R1())
            _certificate(file, _name(file.stem), name, key.public_key(), authority, names)
            plain = serialization.NoEncryption()
            key_file.touch(0o600)
            key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


def _certificate(file: Path, subject: x509.Name, issuer: x509.Name, key: Any, signs: Any, extension: Any) -> None:
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        .sign(signs, hashes.SHA256())
    )
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(data: str) -> str:
    return base64.b64decode(data).decode(errors="replace")
