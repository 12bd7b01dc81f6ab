"""Keep one host reachable: one control channel at a time, its runs as facts, its loss as a fact, and again.

Each connection is a generation. Its number is part of the epoch it greets the host with, so that a link of an older
generation that still hangs somewhere can no longer change anything there.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from supervisor.core.facts import EtcdTold, Fact, HostFound, HostLost, LeavingTold, LogoutTold, Told
from supervisor.errors import HostRefused, HostUnreachable, Superseded
from supervisor.plan.launch import HostFacts
from supervisor.probes.ask import HttpRequest
from supervisor.runtime.parse import controller, gpus_seen, host_facts, logout, run_state
from supervisor.transport.base import Channel, Transport

VERSION = 1
OPEN_S = 15.0
PING_S = 1.0
SILENT_S = 4.0  # less than core/absence.py waits for: a line that only hung is back by then
OVERSLEPT_S = 1.0  # who was late himself (a stopped controller, a stalled machine) has not listened either
# A host that comes back is met within two seconds, and a knock at a closed door takes 2 ms of CPU (measured). By chance down
# to half of it: fifty that were lost at once do not knock at once, and a jump host's MaxStartups is 10.
FIRST_AGAIN_S, MAX_AGAIN_S = 0.4, 2.0
GOODBYE_S = 2.0
ETCD_S = 9.0  # for all members of an etcd that is not ours, one after the other
YIELD_S = 10.0  # for a controller that started after us to notice that it came second


class Door(NamedTuple):
    """An address, dialled from a host. `stalled`: connections from there to it still wait to be acknowledged."""

    opens: bool
    stalled: bool


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
        self._watches: dict[int, Callable[[Mapping[str, Any]], None]] = {}
        self._count = 0
        self._heard_s: float | None = None  # when it last answered; what it says unasked proves nothing
        self._contested_s: float | None = None
        self._leads_elsewhere = leads_elsewhere
        self._etcd: Mapping[str, object] | None = None

    async def run(self) -> None:
        """Connect, serve, and again with growing pauses. A host that refuses is asked no more."""
        async with anyio.create_task_group() as self._goodbyes:
            await self._again_and_again()

    async def _again_and_again(self) -> None:
        pause_s = FIRST_AGAIN_S
        while True:
            self._generation += 1
            try:
                transport = self._connect()
                try:
                    await self._serve(transport)
                finally:
                    self._goodbyes.start_soon(_hang_up, transport)
            except HostRefused as refusal:
                hint = f" ({refusal.hint})" if refusal.hint else ""
                held_by = refusal.holder if isinstance(refusal, Superseded) else {}
                await self._tell(HostLost(self.name, f"{refusal}{hint}", refused=True, held_by=held_by))
                return
            except HostUnreachable as lost:
                if self._heard_s is not None:
                    pause_s = FIRST_AGAIN_S
                await self._tell(HostLost(self.name, str(lost), heard_s=self._heard_s))
                self._heard_s = None
            if not self._persist:
                return
            await anyio.sleep(pause_s * random.uniform(0.5, 1.0))
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

    async def dial(self, doors: Sequence[tuple[str, int]], timeout_s: float) -> list[Door]:
        """Which of these addresses takes a connection from that host, in their order. Raises HostUnreachable."""
        said = await self.request({"op": "dial", "to": list(doors), "timeout_s": timeout_s}, timeout_s + 0.5)
        return [Door(bool(took), bool(late)) for took, late in zip(said["answered"], said["stalled"], strict=True)]

    async def http(self, address: str, port: int, ask: HttpRequest, timeout_s: float = 5.0) -> tuple[int, bytes]:
        """One HTTP request made on that host; status 0 and a reason as body when nobody answered."""
        message = {**self.asking(address, port, ask, timeout_s), "op": "http"}
        return self.answered(await self.request(message, timeout_s + 1.0))

    def use(self, etcd: Mapping[str, object] | None) -> None:
        """Where an etcd that is not ours is, and how to log in there; the host tries it, and tells whether it can be used."""
        if etcd != self._etcd:
            self._etcd = etcd
            self.post({"op": "discovery", "etcd": etcd})

    async def etcd(self, ask: HttpRequest, timeout_s: float) -> tuple[int, bytes]:
        """One request to that etcd, made on that host; as `http`. `timeout_s`: of each member."""
        message = {"op": "etcd", "path": ask.path, "body": ask.body.decode("latin-1"), "timeout_s": timeout_s}
        return self.answered(await self.request(message, ETCD_S))

    @staticmethod
    def asking(address: str, port: int, ask: HttpRequest, timeout_s: float) -> Mapping[str, object]:
        """How a host is told of a request that it shall make."""
        return {
            "host": address, "port": port, "method": ask.method, "path": ask.path,
            "headers": dict(ask.headers), "body": ask.body.decode("latin-1"), "timeout_s": timeout_s,
        }  # fmt: skip

    @staticmethod
    def answered(said: Mapping[str, Any]) -> tuple[int, bytes]:
        if said["error"]:
            return 0, str(said["error"]).encode()
        return int(said["status"]), str(said["body"]).encode("latin-1")

    @contextmanager
    def watching(
        self, what: Mapping[str, object], news: Callable[[Mapping[str, Any]], None]
    ) -> Iterator[Callable[[Mapping[str, object]], None]]:
        """Let the host look by itself, as `hostside/watches.py` has it; `news` is called with each answer that it tells. Gives
        a function that changes what is watched, or how often.

        Ends with the block. With the line it ends unsaid: that the host is lost is told to all, and who is found again
        asks again.
        """
        self._count += 1
        number = self._count  # never used twice, so that no news of an older generation is taken for ours

        def again(what: Mapping[str, object]) -> None:
            self.post({**what, "op": "watch", "id": number})

        self._watches[number] = news
        again(what)
        try:
            yield again
        finally:
            del self._watches[number]
            self.post({"op": "unwatch", "id": number})

    @property
    def _epoch(self) -> int:
        epoch = self._hello.get("epoch", 0)
        assert isinstance(epoch, int)
        return epoch * 1000 + self._generation

    # --- one generation ---------------------------------------------------------------------------------------------

    async def _serve(self, transport: Transport) -> None:
        """Until the line breaks: raises HostUnreachable or HostRefused, nothing else."""
        channel = await transport.open("link", OPEN_S)
        await channel.send({**self._hello, "op": "hello", "v": VERSION, "epoch": self._epoch, "etcd": self._etcd})
        send, receive = anyio.create_memory_object_stream[Mapping[str, object]](math.inf)
        self.transport, self._out = transport, send
        self._heard_s = began_s = anyio.current_time()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, channel, receive)
                tasks.start_soon(self._ping, began_s)
                tasks.start_soon(self._read, channel)
        except BaseExceptionGroup as group:  # not except*: what is raised there, 3.11.2 wraps in a group once more
            lost, others = group.split((HostUnreachable, HostRefused))
            if lost is None or others is not None:
                raise
            raise _first(lost) from None
        finally:
            self.transport, self._out = None, None
            send.close()
            receive.close()
            for waiting in self._replies.values():
                waiting.close()  # whoever waits learns it now, not at its time-out

    async def _read(self, channel: Channel) -> None:
        found = False
        async for said in channel:
            if "state" in said:
                await self._tell(Told(self.name, run_state(_mapping(said["state"]))))
            elif "reply" in said:
                waiting = self._replies.get(int(str(said["reply"])))
                if waiting is not None:
                    waiting.send_nowait(said)
            elif "news" in said:
                heard = self._watches.get(int(str(said["news"])))
                if heard is not None:
                    heard(said)
            elif "pong" in said:
                self._heard_s = anyio.current_time()
            elif "hello" in said:
                found = True
                hello = _mapping(said["hello"])
                self.facts = host_facts(hello, int(time.time() * 1000))
                runs = tuple(run_state(run) for run in hello["runs"])
                self._contested_s = None
                # Said once: later it could put out one that meanwhile took over from us.
                self._hello = {key: value for key, value in self._hello.items() if key != "take_over"}
                led_by = controller(hello.get("led_by") or {})
                survives, leaves = logout(hello.get("logout", {})), str(hello.get("leaving") or "")
                etcd = hello.get("etcd", "")
                await self._tell(HostFound(self.name, runs, self.facts.boot_id, survives, led_by, leaves, etcd))
            elif "leaving" in said:
                await self._tell(LeavingTold(self.name, str(said["leaving"])))
            elif "etcd" in said:
                why = said["etcd"]
                await self._tell(EtcdTold(self.name, None if why is None else str(why)))
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

    async def _ping(self, began_s: float) -> None:
        number = 0
        while True:
            due_s = anyio.current_time() + PING_S
            await anyio.sleep_until(due_s)
            number += 1
            self.post({"op": "ping", "n": number})
            now_s = anyio.current_time()
            silent_s = now_s - (self._heard_s or began_s)
            if silent_s > SILENT_S and now_s < due_s + OVERSLEPT_S:
                raise HostUnreachable(f"{self.name} has been silent for {silent_s:.0f} s")


async def _hang_up(transport: Transport) -> None:
    """Beside what comes next: a silent line takes its whole time, and neither the news nor the next try waits for it."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(GOODBYE_S):
        await transport.aclose()


def _mapping(value: object) -> dict[str, Any]:
    assert isinstance(value, dict)
    return value


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError
