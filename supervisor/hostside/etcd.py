"""etcd's JSON gateway as a host speaks it: blocking, over TLS and logged in where the etcd is somebody else's.

A target names it: {"urls": [of each member], "tls": {"ca", "cert", "key"}, "auth": {"user", "password"}}, the last two only
where they are needed. `tls` are paths on this host. `auth` is kept in memory alone: no record of a run has it.
A login costs 70 ms (etcd hashes with bcrypt; measured), so it is made once for all that one piece of work asks.
"""

from __future__ import annotations

import base64
import json
import socket
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, TypeVar, cast
from urllib.parse import urlsplit

from . import http

T = TypeVar("T")
PORT = 2379
USER, PASSWORD = "ETCD_AUTH_USERNAME", "ETCD_AUTH_PASSWORD"
PREFIXES = ("v1/", "noray/")  # what Dynamo reads and writes, and what we keep aside
WANTS_USER = "user name is empty"
NO_HTTP = "not an HTTP answer"
HINTS = {
    WANTS_USER: "it wants a user: %s and %s in the env_file" % (USER, PASSWORD),
    NO_HTTP: "it does not speak plain http; perhaps https",
}
NOBODY = "no etcd answered: "


class Member:
    """One member, for one piece of work. Methods raise OSError when it does not answer, ValueError when it refuses."""

    def __init__(self, url: str, target: Mapping[str, Any], timeout_s: float) -> None:
        self.url = url
        self._where, self._timeout_s = urlsplit(url), timeout_s
        self._tls, self._auth = target.get("tls"), target.get("auth")
        self._token: Optional[str] = None

    def post(self, path: str, body: Dict[str, Any]) -> Dict[str, Any]:
        return judge(*self.exchange(path, json.dumps(body).encode()))

    def exchange(self, path: str, body: bytes) -> Tuple[int, bytes]:
        """Status and body, whatever they say; ValueError only if the login is refused."""
        headers = {"Content-Type": "application/json"}
        if self._auth:
            if self._token is None:
                self._token = self._login()
            headers["Authorization"] = self._token
        return self._send(path, headers, body)

    def _login(self) -> str:
        assert self._auth is not None
        said = {"name": self._auth["user"], "password": self._auth["password"]}
        answer = self._send("/v3/auth/authenticate", {"Content-Type": "application/json"}, json.dumps(said).encode())
        try:
            return str(judge(*answer)["token"])
        except (ValueError, LookupError) as error:
            raise ValueError("user %s is refused: %s" % (self._auth["user"], why(error))) from None

    def _send(self, path: str, headers: Dict[str, str], body: bytes) -> Tuple[int, bytes]:
        host, port = self._where.hostname or "", self._where.port or PORT
        # A str would be encoded as an international name first, and what that imports takes 4 ms of a fence (measured).
        address = cast(Tuple[str, int], (host.encode(), port))
        with socket.create_connection(address, self._timeout_s) as plain, self._secured(plain, host) as sock:
            sock.sendall(http.request("POST", self._where.netloc, path, headers, body))
            answer = bytearray()
            while len(answer) < http.ANSWER_LIMIT:
                part = sock.recv(1 << 16)
                if not part:
                    break
                answer += part
        return http.parse(bytes(answer))

    def _secured(self, plain: socket.socket, host: str) -> socket.socket:
        if self._where.scheme != "https":
            return plain
        import ssl

        tls = self._tls or {}
        context = ssl.create_default_context(cafile=tls.get("ca"))
        if tls.get("cert"):
            context.load_cert_chain(tls["cert"], tls["key"])
        return context.wrap_socket(plain, server_hostname=host)


def prepare(target: Mapping[str, Any]) -> None:
    """In a long life, early: the interpreter may be replaced under it. 5 MB, so only where it is needed."""
    if any(url.startswith("https:") for url in target.get("urls", ())):
        import ssl  # noqa: F401


def each(target: Mapping[str, Any], timeout_s: float, work: Callable[[Member], T]) -> T:
    """What `work` makes of the first member that does it. Raises OSError, with what each of them said."""
    errors: List[str] = []
    for url in target["urls"]:
        try:
            return work(Member(url, target, timeout_s))
        except (OSError, ValueError) as error:
            errors.append("%s: %s" % (url, why(error)))
    raise OSError(NOBODY + "; ".join(errors))


def judge(status: int, body: bytes) -> Dict[str, Any]:
    """The JSON body of an etcd answer. A lease that is already gone is what we wanted; other errors raise ValueError."""
    try:
        decoded = json.loads(body)
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        raise ValueError("not an etcd answer: %s" % (body[:60].decode("latin-1").strip() or "status %d" % status))
    if status != 200 and decoded.get("code") != 5:  # 5 = NOT_FOUND
        raise ValueError(str(decoded.get("message") or decoded.get("error") or "status %d" % status))
    return decoded


def why(error: BaseException) -> str:
    """An error as an operator reads it."""
    if isinstance(error, socket.timeout):
        return "no answer in time"
    said = str(getattr(error, "verify_message", "") or getattr(error, "strerror", "") or error)
    path = getattr(error, "filename", None)
    hint = next((hint for words, hint in HINTS.items() if words in said), "")
    return hint or ("%s: %s" % (path, said) if path else said)


def credentials(env: Mapping[str, str]) -> Optional[Dict[str, str]]:
    """Those that a process is given, as a target has them."""
    return {"user": env[USER], "password": env[PASSWORD]} if USER in env and PASSWORD in env else None


def span(prefix: str) -> Dict[str, str]:
    """All keys that begin so, as a range takes them."""
    first = prefix.encode()
    return {"key": base64.b64encode(first).decode(), "range_end": base64.b64encode(_after(first)).decode()}


def _after(first: bytes) -> bytes:
    return first[:-1] + bytes([first[-1] + 1])  # ends in "/" or a letter: never in 0xff


def ask(target: Mapping[str, Any], path: str, body: bytes, timeout_s: float) -> bytes:
    """For a child of its own: {"status", "body", "error"}, as http.ask tells it."""
    try:
        status, answer = each(target, timeout_s, lambda member: member.exchange(path, body))
        told = {"status": status, "body": answer.decode("latin-1"), "error": ""}
    except OSError as error:
        told = {"status": 0, "body": "", "error": str(error)}
    return json.dumps(told).encode()


def probe(target: Mapping[str, Any], timeout_s: float) -> bytes:
    """For a child of its own: why Dynamo could not work with it, as a JSON word; "" if it can."""
    try:
        each(target, timeout_s, _try)
        return b'""'
    except OSError as error:
        return json.dumps(str(error)[len(NOBODY) :]).encode()


def _try(member: Member) -> None:
    """A transaction that is never carried out, as no key has a version below 0; but what it would do must be permitted."""
    for prefix in PREFIXES:
        key = base64.b64encode((prefix + "probe").encode()).decode()
        never = {"key": key, "target": "VERSION", "result": "LESS", "version": "0"}
        would = [{"request_range": dict(span(prefix), limit="1")}, {"request_put": {"key": key, "value": ""}}]
        try:
            member.post("/v3/kv/txn", {"compare": [never], "success": would})
        except ValueError as error:
            if "permission denied" in str(error):
                raise ValueError("its user must be allowed to read and write keys that begin with %s" % prefix) from None
            raise


def content(env: Dict[str, str], names: List[str]) -> Dict[str, str]:
    """With these variables holding what stands in the files that they name. OSError names the file that cannot be read."""
    read = dict(env)
    for name in names:
        with open(env[name], encoding="latin-1") as file:
            read[name] = file.read()
    return read
