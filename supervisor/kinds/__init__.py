"""The kinds: one small pure file each, one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from supervisor.kinds import etcd, frontend, gateway, mocker, nats, vllm
from supervisor.kinds.base import Kind

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "etcd": etcd.KIND,
        "frontend": frontend.KIND,
        "gateway": gateway.KIND,
        "mocker": mocker.KIND,
        "nats": nats.KIND,
        "vllm": vllm.KIND,
    }
)
