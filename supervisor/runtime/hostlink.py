"""Keep one host reachable: one control channel at a time, its runs as facts, its loss as a fact, and again.

Each connection is a generation. Its number is part of the epoch it greets the host with, so that a link of an older
generation that still hangs somewhere can no longer change anything there.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from supervisor.core.facts import Fact, HostFound, HostLost, LogoutTold, Told
from supervisor.errors import HostRefused, HostUnreachable, Superseded
from supervisor.plan.launch import HostFacts
from supervisor.probes.ask import HttpRequest
from supervisor.runtime.parse import controller, gpus_seen, host_facts, logout, run_state
from supervisor.transport.base import Channel, Transport

VERSION = 1
OPEN_S = 15.0
PING_S = 2.0
SILENT_S = 6.0  # three pings unanswered
FIRST_AGAIN_S, MAX_AGAIN_S = 0.2, 15.0
YIELD_S = 10.0  # for a controller that started after us to notice that it came second


class HostLink:
    """One host. `run` for ever in a task group; everything else may be called from any task of the same loop."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Transport],
        hello: Mapping[str, object],
        tell: Callable[[Fact], Awaitable[None]],
        persist: bool = True,
        leads_elsewhere: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name = name
        self.facts: HostFacts | None = None
        self.transport: Transport | None = None
        self._connect, self._hello, self._tell, self._persist = connect, hello, tell, persist
        self._generation = 0
        self._out: MemoryObjectSendStream[Mapping[str, object]] | None = None
        self._replies: dict[int, MemoryObjectSendStream[dict[str, Any]]] = {}
        self._count = 0
        self._heard_s = 0.0
        self._contested_s: float | None = None
        self._leads_elsewhere = leads_elsewhere

    async def run(self) -> None:
        """Connect, serve, and again with growing pauses. A host that refuses is asked no more."""
        pause_s = FIRST_AGAIN_S
        while True:
            try:
                self._generation += 1
                transport = self._connect()
                try:
                    await self._serve(transport)
                finally:
                    self.transport, self._out = None, None
                    for waiting in self._replies.values():
                        waiting.close()  # whoever waits learns it now, not at its time-out
                    with anyio.CancelScope(shield=True), anyio.move_on_after(2.0):
                        await transport.aclose()
            except HostRefused as refusal:
                hint = f" ({refusal.hint})" if refusal.hint else ""
                held_by = refusal.holder if isinstance(refusal, Superseded) else {}
                await self._tell(HostLost(self.name, f"{refusal}{hint}", refused=True, held_by=held_by))
                return
            except HostUnreachable as lost:
                if self._heard_s:
                    pause_s = FIRST_AGAIN_S
                self._heard_s = 0.0
                await self._tell(HostLost(self.name, str(lost)))
            if not self._persist:
                return
            await anyio.sleep(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(pause_s * 2, MAX_AGAIN_S)

    def post(self, message: Mapping[str, object]) -> None:
        """Send without waiting. Lost with the line: what is still wanted is decided again when the host is back."""
        if self._out is not None:
            self._out.send_nowait(message)

    async def request(self, message: Mapping[str, object], timeout_s: float = 5.0) -> dict[str, Any]:
        """Send and wait for the reply. Raises HostUnreachable when there is no line, or no reply in time."""
        if self._out is None:
            raise HostUnreachable(f"{self.name} is not connected")
        self._count += 1
        number = self._count
        send, receive = anyio.create_memory_object_stream[dict[str, Any]](1)
        self._replies[number] = send
        try:
            with anyio.fail_after(timeout_s):
                self.post({**message, "id": number})
                return await receive.receive()
        except TimeoutError:
            raise HostUnreachable(f"{self.name} did not answer within {timeout_s:g} s") from None
        except anyio.EndOfStream:
            raise HostUnreachable(f"the line to {self.name} broke") from None
        finally:
            self._replies.pop(number, None)
            send.close()
            receive.close()

    async def http(self, address: str, port: int, ask: HttpRequest, timeout_s: float = 5.0) -> tuple[int, bytes]:
        """One HTTP request made on that host; status 0 and a reason as body when nobody answered."""
        message = {
            "op": "http", "host": address, "port": port, "method": ask.method, "path": ask.path,
            "headers": dict(ask.headers), "body": ask.body.decode("latin-1"), "timeout_s": timeout_s,
        }  # fmt: skip
        reply = await self.request(message, timeout_s + 1.0)
        if reply["error"]:
            return 0, str(reply["error"]).encode()
        return int(reply["status"]), str(reply["body"]).encode("latin-1")

    @property
    def _epoch(self) -> int:
        epoch = self._hello.get("epoch", 0)
        assert isinstance(epoch, int)
        return epoch * 1000 + self._generation

    # --- one generation ---------------------------------------------------------------------------------------------

    async def _serve(self, transport: Transport) -> None:
        """Until the line breaks: raises HostUnreachable or HostRefused, nothing else."""
        channel = await transport.open("link", OPEN_S)
        await channel.send({**self._hello, "op": "hello", "v": VERSION, "epoch": self._epoch})
        send, receive = anyio.create_memory_object_stream[Mapping[str, object]](math.inf)
        self.transport, self._out = transport, send
        self._heard_s = anyio.current_time()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, channel, receive)
                tasks.start_soon(self._ping)
                tasks.start_soon(self._read, channel)
        except BaseExceptionGroup as group:  # not except*: what is raised there, 3.11.2 wraps in a group once more
            lost, others = group.split((HostUnreachable, HostRefused))
            if lost is None or others is not None:
                raise
            raise _first(lost) from None
        finally:
            send.close()
            receive.close()

    async def _read(self, channel: Channel) -> None:
        found = False
        async for said in channel:
            self._heard_s = anyio.current_time()
            if "state" in said:
                await self._tell(Told(self.name, run_state(_mapping(said["state"]))))
            elif "reply" in said:
                waiting = self._replies.get(int(str(said["reply"])))
                if waiting is not None:
                    waiting.send_nowait(said)
            elif "hello" in said:
                found = True
                hello = _mapping(said["hello"])
                self.facts = host_facts(hello, int(time.time() * 1000))
                runs = tuple(run_state(run) for run in hello["runs"])
                self._contested_s = None
                # Said once: later it could put out one that meanwhile took over from us.
                self._hello = {key: value for key, value in self._hello.items() if key != "take_over"}
                led_by = controller(hello.get("led_by") or {})
                await self._tell(HostFound(self.name, runs, self.facts.boot_id, logout(hello.get("logout", {})), led_by))
            elif "logout" in said:
                await self._tell(LogoutTold(self.name, logout(_mapping(said["logout"]))))
            elif "ask" in said:
                self.post({"op": "ping", "n": 0})  # somebody wants to know whether we live
            elif "gpus" in said:
                await self._tell(gpus_seen(self.name, _mapping(said["gpus"])))
            elif "refused" in said:
                raise self._refusal(str(said["refused"]), said.get("holder"), found)
        raise HostUnreachable(f"the line to {self.name} ended")

    def _refusal(self, why: str, holder: object, found: bool) -> HostRefused | HostUnreachable:
        """Of two controllers started at once over several hosts each may lead on some: the younger one gives way."""
        why = f"{self.name}: {why}"
        if not isinstance(holder, dict):
            return HostRefused(why)
        if not found and self._leads_elsewhere() and int(holder.get("asked") or 0) > self._epoch:
            now_s = anyio.current_time()
            self._contested_s = now_s if self._contested_s is None else self._contested_s
            if now_s - self._contested_s < YIELD_S:
                return HostUnreachable(why)
        return Superseded(why, controller(holder))

    async def _write(self, channel: Channel, messages: MemoryObjectReceiveStream[Mapping[str, object]]) -> None:
        async for message in messages:
            await channel.send(message)

    async def _ping(self) -> None:
        number = 0
        while True:
            await anyio.sleep(PING_S)
            number += 1
            self.post({"op": "ping", "n": number})
            silent_s = anyio.current_time() - self._heard_s
            if silent_s > SILENT_S:
                raise HostUnreachable(f"{self.name} has been silent for {silent_s:.0f} s")


def _mapping(value: object) -> dict[str, Any]:
    assert isinstance(value, dict)
    return value


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError
