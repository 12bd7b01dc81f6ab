"""One HTTP/1.1 request, small enough for a keeper to carry: http.client costs 1 MB, a thread costs the fork its safety."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Callable, Dict, Optional, Tuple

from .reactor import READ, WRITE, Reactor

ANSWER_LIMIT = 8 << 20  # as JSON at most six times as much: still less than a line may hold


def request(method: str, host: str, path: str, headers: Dict[str, str], body: bytes) -> bytes:
    lines = ["%s %s HTTP/1.1" % (method, path), "Host: " + host, "Connection: close", "Content-Length: %d" % len(body)]
    lines += ["%s: %s" % pair for pair in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def parse(answer: bytes) -> Tuple[int, bytes]:
    """Status and body of a whole answer; ValueError if it is not one."""
    head, found, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    words = lines[0].split()
    if not found or len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise ValueError("not an HTTP answer")
    headers = dict(line.lower().replace(b" ", b"").partition(b":")[::2] for line in lines[1:])
    if headers.get(b"transfer-encoding") == b"chunked":
        return int(words[1]), _unchunk(body)
    length = headers.get(b"content-length")
    if length is not None and len(body) < int(length):
        raise ValueError("the answer broke off")
    return int(words[1]), body if length is None else body[: int(length)]


def _unchunk(body: bytes) -> bytes:
    whole = bytearray()
    while True:
        size, found, body = body.partition(b"\r\n")
        if not found:
            raise ValueError("the answer broke off")
        length = int(size.split(b";")[0], 16)
        if not length:
            return bytes(whole)
        whole += body[:length]
        body = body[length + 2 :]


def ask(reactor: Reactor, message: Dict[str, Any], done: Callable[[Dict[str, Any]], None]) -> None:
    """One request as a controller words it; `done` is given the answer as it is told there: status, body, error."""

    def answered(status: int, body: bytes, error: str) -> None:
        done({"status": status, "body": body.decode("latin-1"), "error": error})

    host, port = message["host"], int(message["port"])
    body = message.get("body", "").encode("latin-1")
    data = request(message.get("method", "GET"), "%s:%d" % (host, port), message["path"], message.get("headers", {}), body)
    Exchange(reactor, host, port, data, float(message.get("timeout_s", 5.0)), answered)


class Exchange:
    """One request on the reactor; `done(status, body, error)` is called exactly once, `error` empty when answered."""

    def __init__(
        self,
        reactor: Reactor,
        host: str,
        port: int,
        data: bytes,
        timeout_s: float,
        done: Callable[[int, bytes, str], None],
    ) -> None:
        self._reactor, self._out, self._done = reactor, data, done
        self._answer = bytearray()
        self._timer = reactor.after(timeout_s, lambda: self._end("no answer within %g s" % timeout_s))
        self._sock: Optional[socket.socket] = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._sock.setblocking(False)
        try:
            code = self._sock.connect_ex((host, port))
        except (OSError, OverflowError) as error:  # a name that does not resolve, a port that is none
            why = str(error)
            reactor.after(0, lambda: self._end(why))
            return
        if code not in (0, errno.EINPROGRESS):
            reactor.after(0, lambda: self._end(os.strerror(code)))
        else:
            reactor.watch(self._sock.fileno(), WRITE, self._writable)

    def _writable(self, _: int) -> None:
        assert self._sock is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            return self._end(os.strerror(code))
        try:
            self._out = self._out[self._sock.send(self._out) :]
        except BlockingIOError:
            return None
        except OSError as error:
            return self._end(str(error))
        if not self._out:
            self._reactor.watch(self._sock.fileno(), READ, self._readable)
        return None

    def _readable(self, _: int) -> None:
        assert self._sock is not None
        try:
            part = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(str(error))
            return
        self._answer += part
        if len(self._answer) > ANSWER_LIMIT:
            self._end("the answer is longer than %d bytes" % ANSWER_LIMIT)
        elif not part:
            self._end("")

    def _end(self, error: str) -> None:
        if self._sock is None:
            return
        self._timer.cancel()
        self._reactor.unwatch(self._sock.fileno())
        self._sock.close()
        self._sock = None
        status, body = 0, b""
        if not error:
            try:
                status, body = parse(bytes(self._answer))
            except ValueError as broken:
                error = str(broken)
        self._done(status, body, error)
