"""As much of a controller as one host needs: the product's own link over its own ssh, driven by lines on stdin.

    python -m tests.systemd.controller '{"address": "127.0.0.1", "user": …}' '{"deployment": …}'

Facts go to stdout as they come, one JSON object per line: {"HostFound": {…}}, {"Told": {…}}. A line on stdin is posted
to the host. Killed -9 it is a controller that lost power.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import anyio

from supervisor.core.facts import Fact
from supervisor.runtime.hostlink import HostLink
from supervisor.transport import HostAddress, transport_for


async def tell(fact: Fact) -> None:
    print(json.dumps({type(fact).__name__: asdict(fact)}), flush=True)


async def listen(link: HostLink) -> None:
    async for line in anyio.wrap_file(sys.stdin):
        link.post(json.loads(line))


async def main(place: dict[str, str], said: dict[str, object]) -> None:
    address = HostAddress(**{**place, "key": Path(place["key"]), "known_hosts": Path(place["known_hosts"])})  # type: ignore[arg-type]
    hello = {"controller": "c1", "epoch": int(time.time() * 1000), "read_only": False, **said}
    link = HostLink(address.name, lambda: transport_for(address), hello, tell)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen, link)
        await link.run()


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.argv[1]), json.loads(sys.argv[2]))
