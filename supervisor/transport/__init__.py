"""Ways to reach a host. To add one: a dialer in a file of its own, a line in DIALERS, a param of the contract suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from supervisor.errors import HostRefused
from supervisor.transport import bundle
from supervisor.transport.base import Channel, HostAddress, Transport
from supervisor.transport.dialled import Dialer, DialledTransport
from supervisor.transport.local import LocalDialer
from supervisor.transport.ssh import SshDialer

__all__ = ["Channel", "HostAddress", "Transport", "transport_for"]

DIALERS: Mapping[str, Callable[[HostAddress], Dialer]] = {"local": LocalDialer, "ssh": SshDialer}


def transport_for(address: HostAddress, host_program: bundle.Bundle | None = None) -> Transport:
    """A new generation of the way to this host; nothing is dialled before the first open()."""
    if address.transport not in DIALERS:
        raise HostRefused(f"{address.name}: no transport {address.transport!r}", hint=f"there are: {', '.join(DIALERS)}")
    return DialledTransport(address, DIALERS[address.transport](address), host_program or bundle.build())
