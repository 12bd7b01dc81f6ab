"""etcd: the cell's memory. Losing its data ends every Dynamo process, so it stops last and keeps its directory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from supervisor.kinds.base import Cell, Kind, LaunchSpec, Site, Stop


def etcd(
    site: Site, cell: Cell, *, name: str, client_port: int, peer_port: int, peers: Mapping[str, str] | None = None
) -> LaunchSpec:
    """One member. `peers`: of several, the URL of each by its name.

    `etcd` is a bare name: the host finds it in the interpreter's bin directory, then in PATH.

    The pip package's script of that name execs the real program (same pid, no child), so the keeper's child is etcd
    itself; only its argv changes on the way.
    """
    client = f"http://{site.address}:${{port.client}}"
    peer = f"http://{site.address}:${{port.peer}}"
    cluster = ",".join(f"{member}={url}" for member, url in (peers or {name: peer}).items())
    # Who the members are stays in the data, whatever is said here: others begin anew, as do all that had registered.
    data = f"etcd-{hashlib.sha256(cluster.encode()).hexdigest()[:8]}" if peers else "etcd"
    return LaunchSpec(
        argv=(
            "etcd",
            *("--name", name),
            *("--data-dir", f"{site.data_dir}/{data}"),
            *("--listen-client-urls", client),
            *("--advertise-client-urls", client),
            *("--listen-peer-urls", peer),
            *("--initial-advertise-peer-urls", peer),
            *("--initial-cluster", cluster),
            *("--initial-cluster-token", cell.namespace),
            *("--auto-compaction-retention", "1h"),  # off by default: the history of every lease would be kept for ever
        ),
        ports={"client": client_port, "peer": peer_port},
        bind=site.address,
    )


KIND = Kind(
    launch=etcd,
    # Nothing to drain. It answers SIGTERM within 20 ms by dying of it: signal 15 is its clean end, not 0.
    stop=Stop(drain_s=0.0, term_s=10.0, because="nothing to drain; etcd ends 20 ms after SIGTERM"),
    start_rank=0,
    stop_rank=2,
    alive_s=300.0,  # every process hangs on its lease: nobody is in a hurry to end it
    ports={"client": "gRPC and JSON gateway, what ETCD_ENDPOINTS names", "peer": "raft, of members among each other"},
    owned=frozenset(),
)
