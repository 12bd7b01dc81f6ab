"""The keys to log in with, in the order of ssh(1): those that are named, then whatever else the agent has.

asyncssh asks the agent first, and for every key it has: a server that allows six tries then never sees the right one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
import asyncssh

from supervisor.transport.ssh.settings import Hop


@asynccontextmanager
async def keys(hop: Hop) -> AsyncIterator[list[asyncssh.SSHKeyPair]]:
    """Usable inside only: the agent signs. A silent or missing agent has no keys.

    Raises ValueError for a key that the inventory names and that neither the file nor the agent gives.
    """
    agent, held = None, []
    if hop.agent:
        try:
            agent = await asyncssh.connect_agent(hop.agent)
            held = list(await agent.get_keys())
        except (OSError, ValueError):
            pass
    try:
        yield await anyio.to_thread.run_sync(_ordered, hop, held)
    finally:
        if agent is not None:
            agent.close()


def _ordered(hop: Hop, held: Sequence[asyncssh.SSHKeyPair]) -> list[asyncssh.SSHKeyPair]:
    certificates = [str(path) for path in hop.certificates if path.exists()]
    named: list[asyncssh.SSHKeyPair] = []
    for identity in hop.identities:
        public = _public(identity.path)
        in_agent = [pair for pair in held if pair.public_data == public]
        try:
            named += asyncssh.load_keypairs(str(identity.path), certlist=certificates)
        except (OSError, ValueError) as exc:  # missing, public, locked by a passphrase, or none at all
            if identity.must_exist and not in_agent:
                raise ValueError(str(exc)) from exc
            named += in_agent
    known = {pair.public_data for pair in named}
    return [*named, *(pair for pair in held if pair.public_data not in known and not hop.identities_only)]


def _public(path: Path) -> bytes | None:
    """Of the key, by the file beside it or its own, where that is a public one."""
    for each in (path.with_name(path.name + ".pub"), path):
        try:
            return asyncssh.read_public_key(each).public_data
        except (OSError, ValueError):
            continue
    return None
