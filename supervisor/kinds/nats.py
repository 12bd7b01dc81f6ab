"""NATS, for the planes that go over it. Its clients connect again by themselves, and nothing is routed by what it stores."""

from __future__ import annotations

from supervisor.kinds.base import Cell, Kind, LaunchSpec, Site, Stop


def nats(site: Site, cell: Cell, *, client_port: int) -> LaunchSpec:
    """`nats-server` is a bare name: the host finds it in the interpreter's bin directory, then in PATH."""
    return LaunchSpec(
        argv=(
            "nats-server",
            *("--addr", site.address),
            *("--port", "${port.client}"),
            *("--http_port", "${port.monitor}"),
            *("--jetstream", "--store_dir", f"{site.data_dir}/nats"),
        ),
        ports={"client": client_port, "monitor": 0},
        bind=site.address,
    )


KIND = Kind(
    launch=nats,
    stop=Stop(drain_s=0.0, term_s=10.0, because="nothing to drain; nats-server ends 20 ms after SIGTERM"),
    start_rank=0,
    stop_rank=2,
    alive_s=300.0,
    ports={"client": "what NATS_SERVER names", "monitor": "/healthz"},
    owned=frozenset(),
)
