"""etcd's own gateway, one on each host of Dynamo's processes: between them and several members of etcd.

Dynamo 1.4.2 that is told of three members sends each of its requests to any of them, also to one that is away: some of
them fail then, and what starts meanwhile ends with exit code 0 (measured). The gateway leaves out who does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from supervisor.kinds.base import Cell, Kind, LaunchSpec, Site, Stop


def gateway(site: Site, cell: Cell, *, port: int, bind: str, endpoints: Sequence[str]) -> LaunchSpec:
    """`endpoints`: URLs of the members."""
    return LaunchSpec(
        argv=(
            *("etcd", "gateway", "start"),
            *("--listen-addr", f"{bind}:${{port.client}}"),
            *("--endpoints", ",".join(urlsplit(url).netloc for url in endpoints)),
            *("--retry-delay", "1s"),  # a minute by default
        ),
        ports={"client": port},
        bind=bind,
    )


KIND = Kind(
    launch=gateway,
    stop=Stop(drain_s=0.0, term_s=5.0, because="nothing to drain; the gateway ends at once"),
    start_rank=0,
    stop_rank=2,
    alive_s=300.0,  # it is ill when no member answers, too
    ports={"client": "what ETCD_ENDPOINTS names on this host; on loopback"},
    owned=frozenset(),
)
