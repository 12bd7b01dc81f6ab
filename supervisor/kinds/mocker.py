"""Dynamo's mocker: a worker without a GPU that registers, answers, drains and dies like a real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from supervisor.kinds.base import (
    WORKER_OWNED,
    WORKER_PORTS,
    Cell,
    Kind,
    LaunchSpec,
    Site,
    Stop,
    flags,
    worker_env,
    worker_ports,
)

# It uses no GPU and has no such flags; here too they say how many a replica is given. `data_parallel_size` it does have.
NOT_ITS_OWN = frozenset({"tensor_parallel_size", "pipeline_parallel_size"})


def mocker(
    site: Site,
    cell: Cell,
    *,
    service: str,
    served_as: str,
    model: str,
    args: Mapping[str, object],
    extra_args: Sequence[str],
    role: str = "",
) -> LaunchSpec:
    """`role`: prefill or decode, of a model that has both; each then chooses its own component of `service`'s namespace."""
    bootstrap = role == "prefill"  # where decode workers meet it; without it nothing is handed over
    return LaunchSpec(
        argv=(
            *(site.python, "-m", "dynamo.mocker"),
            *flags({key: value for key, value in args.items() if key not in NOT_ITS_OWN}),
            *extra_args,
            *("--model-path", model),
            *("--model-name", served_as),
            *(("--disaggregation-mode", role) if role else ()),
            *(("--bootstrap-ports", "${port.bootstrap}") if bootstrap else ()),
        ),
        env={
            **worker_env(site, cell, service, model),
            # A mocker has no canary: without this /health is 503 for ever. Works in 1.4.2, though it warns "deprecated".
            "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS": '["generate"]',
        },
        ports={**worker_ports(cell), **({"bootstrap": 0} if bootstrap else {})},
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
    alive_s=20.0,
    ports={**WORKER_PORTS, "bootstrap": "of a prefill worker: where decode workers fetch what it has computed"},
    owned=WORKER_OWNED
    | {
        *("model_path", "model_name", "num_workers", "bootstrap_ports"),
        *("disaggregation_mode", "is_prefill_worker", "is_decode_worker"),
    },
)
