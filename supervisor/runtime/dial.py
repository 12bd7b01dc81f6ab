"""From a host of the inventory to a connection with it."""

from __future__ import annotations

from supervisor.spec import Host
from supervisor.transport import HostAddress, Transport, transport_for


def connect(host: Host) -> Transport:
    return transport_for(address_of(host))


def address_of(host: Host) -> HostAddress:
    return HostAddress(
        name=host.name,
        transport=host.transport,
        address=host.address,
        port=host.port,
        user=host.user,
        python=host.python,
        known_hosts=host.known_hosts,
        key=host.key,
        ssh_config=host.ssh_config,
        host_dir=host.host_dir,
    )
