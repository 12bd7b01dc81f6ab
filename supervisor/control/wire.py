"""What controller and CLI say to each other: JSON lines, one object a line, over a unix socket.

    server  {"hello": {"v": 1, "pid": 4711, "version": "0.1.0"}}      at once, so a client knows that somebody is home
    client  {"v": 1, "verb": "status", "args": {"follow": true}}
    server  {"data": {…}}                                             any number of them
            {"lost": 12}                                              followers only: 12 items were dropped here
            {"done": {"items": 3}}                                    or
            {"error": {"kind": "usage", "message": "…", "hint": "…"}}

One conversation may hold several requests, one after the other. A client that hangs up takes back its request; there is
no other way to cancel one. Keys that a side does not know are ignored; what cannot be ignored raises the version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.errors import FileError, HostRefused, NorayError, UsageError

VERSION = 1
MAX_REQUEST = 1 << 20  # bytes of one request line: nobody types more
MAX_REPLY = 1 << 28  # bytes of one reply line: a status of 400 processes is 0.3 MB


@dataclass(frozen=True, slots=True)
class Request:
    """One question. `args["follow"]` true means: for ever, and newest beats complete when the client is slow."""

    verb: str
    args: Mapping[str, object] = field(default_factory=dict)

    @property
    def follow(self) -> bool:
        return self.args.get("follow") is True


class LineTooLong(Exception):
    """The other side sent more than a line may hold."""


class Lines:
    """Cut a byte stream into lines. Searches every byte once, however small the pieces come."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()
        self._searched = 0

    def feed(self, piece: bytes) -> None:
        self._held += piece

    def __len__(self) -> int:
        return len(self._held)

    def next(self) -> bytes | None:
        """The next whole line without its newline, or None while there is none."""
        end = self._held.find(b"\n", self._searched)
        if max(end, len(self._held) if end < 0 else 0) > self._limit:
            raise LineTooLong
        if end < 0:
            self._searched = len(self._held)
            return None
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        self._searched = 0
        return line


def encode(message: Mapping[str, object]) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


def decode(line: bytes) -> dict[str, object]:
    """One message, or UsageError: it is not JSON, or no object."""
    try:
        message = json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        raise UsageError("a message on the control socket is not JSON", "this socket speaks to noray only") from None
    if not isinstance(message, dict):
        raise UsageError("a message on the control socket is not a JSON object", "this socket speaks to noray only")
    return message


def encode_request(request: Request) -> bytes:
    return encode({"v": VERSION, "verb": request.verb, "args": request.args})


def decode_request(line: bytes) -> Request:
    message = decode(line)
    version, verb, args = message.get("v"), message.get("verb"), message.get("args", {})
    if version != VERSION:
        raise UsageError(
            f"the controller speaks version {VERSION} of the control protocol, this client {version!r}",
            "use the noray that started the controller, or restart the controller",
        )
    if not isinstance(verb, str) or not verb:
        raise UsageError("a request names no verb")
    if not isinstance(args, dict):
        raise UsageError(f"the arguments of {verb!r} are not a JSON object")
    return Request(verb, args)


def encode_error(error: NorayError) -> bytes:
    """Sorted by what the client can do: type something else, ask somebody, or look why."""
    kind = "failed"
    if isinstance(error, (UsageError, FileError)):
        kind = "usage"
    elif isinstance(error, HostRefused):
        kind = "refused"
    return encode({"error": {"kind": kind, "message": str(error), "hint": error.hint}})


def decode_error(error: object) -> NorayError:
    """The exception to raise in the client; its exit code is the one it would have had in the controller."""
    fields = error if isinstance(error, dict) else {}
    message, hint = str(fields.get("message", "")), str(fields.get("hint", ""))
    match fields.get("kind"):
        case "usage":
            return UsageError(message, hint)
        case "refused":
            return HostRefused(message, hint)
        case _:
            return NorayError(message or "the controller gave no reason", hint)
