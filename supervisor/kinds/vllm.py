"""Dynamo's vLLM worker: a leader that registers and answers, and below it an EngineCore that has the GPU and may outlive it."""

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
    given,
    parallel,
    worker_env,
    worker_ports,
)

# Of all memory, as vLLM 0.26 asks for by itself. It refuses to start where less is free, after a minute of loading.
GPU_MEMORY_UTILIZATION = 0.92
KV_EVENTS = '{"publisher":"zmq","topic":"kv-events","endpoint":"tcp://*:${port.kv_events}","enable_kv_cache_events":true}'
NIXL = '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'
# From VLLM_PORT on: one for the rendezvous of an engine's ranks (vLLM 0.26; 0.28 uses a file), up to two for a KV connector,
# and one to spare, as vLLM goes on to the next where a port is still in TIME_WAIT.
RENDEZVOUS = 4


def vllm(
    site: Site,
    cell: Cell,
    *,
    service: str,
    served_as: str,
    model: str,
    args: Mapping[str, object],
    extra_args: Sequence[str],
    kv_events: bool,
    role: str = "",
) -> LaunchSpec:
    """`kv_events`: tell KV routers what is cached here. An operator's own `kv_events_config` stands.

    `role`: prefill or decode, of a model that has both; each then chooses its own component of `service`'s namespace. What one
    computes goes to the other by NIXL, if the operator's own `kv_transfer_config` does not say otherwise.
    """
    generates = task(args, extra_args) == "completion"  # what only pools has no cache to tell of
    publishes = kv_events and generates and role != "decode" and not given("kv_events_config", args, extra_args)
    connects = given("kv_transfer_config", args, extra_args)
    transfers = connects or bool(role)
    ranks = parallel(args, "data")
    counts = dict.fromkeys(worker_ports(cell), 1)
    env: dict[str, str] = {}
    if ranks == 1:
        # Where vLLM begins to look for free ports; else the kernel picks, from the ephemeral range.
        counts["vllm"] = RENDEZVOUS
        env["VLLM_PORT"] = "${port.vllm}"
    else:
        # Never VLLM_PORT: the engines of all ranks look at once, find the same port free, and all but one die of EADDRINUSE
        # when they have loaded (measured with two ranks, and with none of it without VLLM_PORT; CPU build of 0.28, made to
        # meet over TCP as 0.26 does). Only a model with experts would share one list of ports.
        counts["dp_rpc"] = 1
    if publishes:
        counts["kv_events"] = ranks  # each at the first + its rank
    if transfers:
        # 5600 by default, on every worker. At the first + its rank, in older versions + rank * tensor_parallel_size + tp rank.
        counts["nixl"] = ranks * parallel(args, "tensor")
        env |= {"VLLM_NIXL_SIDE_CHANNEL_HOST": site.address, "VLLM_NIXL_SIDE_CHANNEL_PORT": "${port.nixl}"}
    return LaunchSpec(
        argv=(
            *(site.python, "-m", "dynamo.vllm"),
            *flags(args),
            *extra_args,
            *(("--kv-events-config", KV_EVENTS) if publishes else ()),
            *(("--data-parallel-rpc-port", "${port.dp_rpc}") if ranks > 1 else ()),  # else the same for all engines of a host
            *("--model", model),
            *("--served-model-name", served_as),
            *(("--disaggregation-mode", role) if role else ()),
            *(("--kv-transfer-config", NIXL) if role and not connects else ()),
        ),
        env={
            **worker_env(site, cell, service, model),
            # One token asked of the engine whenever it is idle. Without it a worker whose EngineCore hangs says 200 for
            # ever (measured on a GPU).
            "DYN_HEALTH_CHECK_ENABLED": "true",
            "VLLM_HOST_IP": site.address,
            **env,
        },
        # How soon it is asked, and how long one answer may take, which may have to wait behind a long prefill (seconds).
        defaults={"DYN_CANARY_WAIT_TIME": "5", "DYN_HEALTH_CHECK_REQUEST_TIMEOUT": "10"},
        ports=dict.fromkeys(counts, 0),
        counts={name: count for name, count in counts.items() if count > 1},
        bind=site.address,
        # On all addresses, or on one of vLLM's own choice, whatever it is told.
        binds={name: "0.0.0.0" for name in ("vllm", "dp_rpc", "kv_events") if name in counts},
        gpu_free=_wanted(args.get("gpu_memory_utilization")),
    )


def task(args: Mapping[str, object], extra_args: Sequence[str]) -> str:
    """What its clients may ask for: `completion`, `embedding` or `classification`. A worker does one of them."""
    for flag, name in (("embedding_worker", "embedding"), ("classify_worker", "classification")):
        if args.get(flag) or "--" + flag.replace("_", "-") in extra_args:
            return name
    return "completion"


def _wanted(utilization: object) -> float:
    return float(utilization) if isinstance(utilization, int | float) else GPU_MEMORY_UTILIZATION


KIND = Kind(
    launch=vllm,
    # On SIGTERM Dynamo deregisters, serves on for 5 s, and then breaks off whatever is still being generated (measured,
    # 1.4.2). So the drain is ours, before the signal: cordoned, until no request is in flight.
    stop=Stop(
        drain_s=60.0, term_s=30.0, because="vLLM drops what it generates 5 s after SIGTERM, so that is waited for before"
    ),
    start_rank=1,
    stop_rank=1,
    cold_first=True,  # torch.compile, JIT kernels, the model from its hub: several at once do the same work, on the same files
    # Counted from when its canary has failed, which is up to 15 s after the engine hung.
    alive_s=20.0,
    ports={
        **WORKER_PORTS,
        "vllm": "rendezvous of its ranks: the first ports that vLLM tries",
        "dp_rpc": "handshake of the engines of data-parallel ranks",
        "kv_events": "what is cached, for KV routers, one for each data-parallel rank; on all addresses",
        "nixl": "side channel of KV transfer, one for each rank",
    },
    owned=WORKER_OWNED
    | {
        *("model", "served_model_name", "disaggregation_mode", "headless", "nnodes", "node_rank", "master_addr", "master_port"),
        *("data_parallel_rank", "data_parallel_address", "data_parallel_rpc_port", "data_parallel_start_rank"),
    },
)
