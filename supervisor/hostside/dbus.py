"""As much D-Bus as it takes to ask logind three questions and a user manager for one scope (D-Bus specification, wire format).

By hand, because a start may not cost the 15 ms of forking `busctl` five times, and no host must have more than Python.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

SYSTEM_BUS = "/run/dbus/system_bus_socket"
CALL, REPLY, ERROR, SIGNAL = 1, 2, 3, 4
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_TO, DESTINATION, SIGNATURE = 1, 2, 3, 4, 5, 6, 8
FIELD_TYPES = {PATH: "o", SIGNATURE: "g"}  # of the header fields we send; all others are strings
NUMBERS = {
    "y": "=B", "b": "=I", "n": "=h", "q": "=H", "i": "=i", "u": "=I", "x": "=q", "t": "=Q", "d": "=d", "h": "=I",
}  # fmt: skip
ENDIAN = ord("l" if sys.byteorder == "little" else "B")
LIMIT = 1 << 20  # no answer we ask for comes near it


class Failed(Exception):
    """The other side answered with an error, or with something that is no D-Bus."""


class Message(NamedTuple):
    kind: int
    fields: Dict[int, Any]
    body: List[Any]


class Bus:
    """One connection, to a bus or directly to a manager's private socket. Every method raises OSError or Failed.

    `within_s` is for its whole life: whoever asks is on the way to start something, and a hung bus must not hold that up.
    """

    def __init__(self, path: str, within_s: float, direct: bool = False) -> None:
        self._until = time.monotonic() + within_s
        self._serial = 0
        self._buffer = b""
        self._signals: List[Message] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._in_time()
            self._sock.connect(path)
            self._sock.sendall(b"\0AUTH EXTERNAL %s\r\n" % str(os.getuid()).encode().hex().encode())
            while b"\r\n" not in self._buffer:
                self._receive()
            answer, _, self._buffer = self._buffer.partition(b"\r\n")
            if not answer.startswith(b"OK"):
                raise Failed("it does not let us in: %s" % answer.decode(errors="replace"))
            self._sock.sendall(b"BEGIN\r\n")
            if not direct:
                self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def call(self, to: str, path: str, interface: str, member: str, signature: str = "", *args: Any) -> List[Any]:
        """The values of the reply."""
        self._serial += 1
        fields = {DESTINATION: to, PATH: path, INTERFACE: interface, MEMBER: member}
        if signature:
            fields[SIGNATURE] = signature
        body = encode(signature, args)
        told = [(number, (FIELD_TYPES.get(number, "s"), value)) for number, value in sorted(fields.items())]
        header = encode("yyyyuua(yv)", (ENDIAN, CALL, 0, 1, len(body), self._serial, told))
        self._in_time()
        self._sock.sendall(header + bytes(-len(header) % 8) + body)
        while True:
            said = self._message()
            if said.kind == SIGNAL:
                self._signals.append(said)
            elif said.fields.get(REPLY_TO) == self._serial:
                if said.kind == ERROR:
                    why = said.body[0] if said.body and isinstance(said.body[0], str) else said.fields.get(ERROR_NAME)
                    raise Failed("%s: %s" % (member, why))
                return said.body

    def signal(self, member: str) -> List[Any]:
        """The values of the next signal of that name, also of one that came before a reply."""
        while True:
            said = self._signals.pop(0) if self._signals else self._message()
            if said.kind == SIGNAL and said.fields.get(MEMBER) == member:
                return said.body

    def _in_time(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        self._sock.settimeout(left)

    def _receive(self) -> None:
        self._in_time()
        data = self._sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError("it hung up")
        self._buffer += data

    def _message(self) -> Message:
        while len(self._buffer) < 16:
            self._receive()
        endian, kind, _, _, body, _, fields = struct.unpack_from("=4B3I", self._buffer)
        start = (16 + fields + 7) & ~7
        if endian != ENDIAN or start + body > LIMIT:
            raise Failed("what it says cannot be understood")
        while len(self._buffer) < start + body:
            self._receive()
        data, self._buffer = self._buffer[: start + body], self._buffer[start + body :]
        try:
            headers = dict(_get(data, 12, "a(yv)")[0])
            return Message(kind, headers, decode(headers.get(SIGNATURE, ""), data[start:]))
        except (struct.error, IndexError, ValueError, RecursionError) as error:
            raise Failed("what it says cannot be understood: %s" % error) from None


def encode(signature: str, values: Sequence[Any]) -> bytes:
    """Structs are tuples, a variant is (its signature, its value), an array of pairs is a list of them."""
    out = bytearray()
    _put(out, "(%s)" % signature, values)
    return bytes(out)


def decode(signature: str, data: bytes) -> List[Any]:
    """The same back, but a variant comes as its value alone. IndexError, ValueError, struct.error: it is not that."""
    return list(_get(data, 0, "(%s)" % signature)[0])


def _kinds(signature: str) -> List[str]:
    """A signature's complete types: `sa(sv)` is `s` and `a(sv)`."""
    found, at = [], 0
    while at < len(signature):
        end = _end(signature, at)
        found.append(signature[at:end])
        at = end
    return found


def _end(signature: str, at: int) -> int:
    while signature[at] == "a":
        at += 1
    if signature[at] not in "({":
        return at + 1
    depth = 0
    while True:
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(signature[at], 0)
        at += 1
        if not depth:
            return at


def _align(kind: str) -> int:
    if kind[0] in "({":
        return 8
    if kind[0] in "gv":
        return 1
    return struct.calcsize(NUMBERS.get(kind[0], "=I"))


def _pad(out: bytearray, to: int) -> None:
    out += bytes(-len(out) % to)


def _put(out: bytearray, kind: str, value: Any) -> None:
    _pad(out, _align(kind))
    if kind in NUMBERS:
        out += struct.pack(NUMBERS[kind], value)
    elif kind in "sog":
        text = value.encode()
        out += struct.pack("B" if kind == "g" else "=I", len(text)) + text + b"\0"
    elif kind == "v":
        inner, held = value
        _put(out, "g", inner)
        _put(out, inner, held)
    elif kind[0] == "a":
        length = len(out)
        out += bytes(4)
        _pad(out, _align(kind[1:]))
        start = len(out)
        for item in value:
            _put(out, kind[1:], item)
        struct.pack_into("=I", out, length, len(out) - start)
    else:
        for number, part in enumerate(_kinds(kind[1:-1])):
            _put(out, part, value[number])


def _get(data: bytes, at: int, kind: str) -> Tuple[Any, int]:
    """The value of that type at `at`, and where it ends. A dictionary's entries come as pairs."""
    at += -at % _align(kind)
    if kind in NUMBERS:
        (value,) = struct.unpack_from(NUMBERS[kind], data, at)
        return (bool(value) if kind == "b" else value), at + struct.calcsize(NUMBERS[kind])
    if kind in "sog":
        size = 1 if kind == "g" else 4
        length = data[at] if kind == "g" else struct.unpack_from("=I", data, at)[0]
        return data[at + size : at + size + length].decode(), at + size + length + 1
    if kind == "v":
        inner, at = _get(data, at, "g")
        return _get(data, at, inner)
    items: List[Any] = []
    if kind[0] == "a":
        (length,) = struct.unpack_from("=I", data, at)
        at += 4
        at += -at % _align(kind[1:])
        end = at + length
        while at < end:
            item, at = _get(data, at, kind[1:])
            items.append(item)
        return items, at
    if kind[0] not in "({":
        raise ValueError("type %s" % kind)
    for part in _kinds(kind[1:-1]):
        item, at = _get(data, at, part)
        items.append(item)
    return tuple(items), at
