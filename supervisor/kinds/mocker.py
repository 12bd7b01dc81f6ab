"""Dynamo's mocker: a worker without a GPU that registers, answers, drains and dies like a real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from supervisor.kinds.base import Cell, Kind, LaunchSpec, Site, Stop, dynamo_env, flags, namespace_of


def mocker(
    site: Site,
    cell: Cell,
    *,
    service: str,
    served_as: str,
    model: str,
    args: Mapping[str, object],
    extra_args: Sequence[str],
) -> LaunchSpec:
    env = {
        **dynamo_env(cell),
        "DYN_NAMESPACE": namespace_of(cell, service),
        # Frontends fetch tokenizer and config here; without it a local model is never listed. Also the advertised
        # address, hence not 0.0.0.0.
        "DYN_SYSTEM_HOST": site.address,
        "DYN_SYSTEM_PORT": "${port.system}",
        # The request plane. Its address is how we tell which instance in the registry is ours.
        "DYN_TCP_RPC_HOST": site.address,
        "DYN_TCP_RPC_PORT": "${port.rpc}",
        # A mocker has no canary: without this /health is 503 for ever. Works in 1.4.2, though it warns "deprecated".
        "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS": '["generate"]',
    }
    if model.startswith("/"):
        env["HF_HUB_OFFLINE"] = "1"
    return LaunchSpec(
        argv=(
            *(site.python, "-m", "dynamo.mocker"),
            # It uses no GPU and has no such flag; here too that says how many a replica is given.
            *flags({key: value for key, value in args.items() if key != "tensor_parallel_size"}),
            *extra_args,
            *("--model-path", model),
            *("--model-name", served_as),
        ),
        env=env,
        ports={"system": 0, "rpc": 0},
        bind=site.address,
    )


KIND = Kind(
    launch=mocker,
    # Drain = cordoned, until no request is in flight. On SIGTERM it deregisters, closes its system port at once,
    # finishes what is left (up to 900 s by itself) and exits 0; 0.2 s idle. Before it has reached etcd it has no
    # handler and dies of the signal.
    stop=Stop(drain_s=60.0, term_s=30.0, because="Dynamo's worker finishes what is in flight, for up to 900 s by itself"),
    start_rank=1,
    stop_rank=1,
    ports={
        "system": "/health, /metrics, model metadata; at most MAX_SYSTEM_PORT",
        "rpc": "requests; names the instance in the registry",
    },
    owned=frozenset(
        {
            *("model_path", "model_name", "endpoint", "num_workers"),
            *("discovery_backend", "request_plane", "event_plane"),
        }
    ),
)
