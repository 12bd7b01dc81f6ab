"""The Dynamo frontend: HTTP in front, router behind. Stops first, so that nothing new reaches a stopping worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from supervisor.kinds.base import Cell, Kind, LaunchSpec, Site, Stop, dynamo_env, flags, namespace_prefix


def frontend(
    site: Site, cell: Cell, *, port: int, bind: str, args: Mapping[str, object], extra_args: Sequence[str]
) -> LaunchSpec:
    """`bind` is where clients come in; the router's own listeners stay on the cluster address."""
    return LaunchSpec(
        argv=(
            *(site.python, "-m", "dynamo.frontend"),
            *flags({"migration_limit": 3, **args}),  # 0 by default: a dying worker would break its streams
            *extra_args,
            # Ours come last: argparse keeps the last word.
            *("--http-host", bind),
            *("--http-port", "${port.http}"),
            *("--namespace-prefix", namespace_prefix(cell)),
        ),
        env={
            **dynamo_env(cell),
            # Workers call back here. The port can be chosen, the address not: DYN_TCP_RESPONSE_STREAM_HOST wants the
            # name of an interface, and an address there leaves /v1/models empty for ever.
            "DYN_TCP_RESPONSE_STREAM_PORT": "${port.stream}",
            # Where a KV router's own endpoint listens. Never DYN_TCP_RPC_PORT beside it: with a fixed port that router
            # fails with "TCP RPC port not set" and lists no model (1.4.2).
            "DYN_TCP_RPC_HOST": site.address,
            # Off by default: a stream from a hung worker would hang its client for ever.
            "DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS": "300",
        },
        ports={"http": port, "stream": 0},
        bind=bind,
        # Its address is Dynamo's choice, so it must be free on all: if it is not, the frontend runs on, says 200 on
        # /health and lists no model for ever.
        binds={"stream": "0.0.0.0"},
    )


KIND = Kind(
    launch=frontend,
    # SIGTERM is its drain: 503 for what is new, running streams to their end (no limit of its own: 8.9 s and 0.06 s
    # idle were measured), exit 0. So all the patience is after the signal.
    stop=Stop(drain_s=0.0, term_s=60.0, because="Dynamo's frontend ends after its last stream and has no limit of its own"),
    start_rank=1,
    stop_rank=0,
    alive_s=300.0,
    ports={"http": "clients, /health, /v1/models", "stream": "responses of workers; on the interface Dynamo detects"},
    owned=frozenset(
        {
            *("http_host", "http_port", "namespace", "namespace_prefix", "interactive"),
            *("discovery_backend", "request_plane", "event_plane"),
        }
    ),
)
