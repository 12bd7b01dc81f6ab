"""Who is registered, against what the real programs showed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from supervisor.kinds.base import Cell, namespace_prefix
from supervisor.probes.view import Instance, View, instance, instances, models, registry, stored
from tests.probes.recorded import page, said

OURS = namespace_prefix(Cell("lab", "etcd"))


def test_a_frontend_shows_what_etcd_holds() -> None:
    shown, held = instances(*said("frontend_health")), registry(*said("etcd_range_instances"))
    workers = {"generate"}
    assert {i for i in shown.instances if i.endpoint in workers} == {i for i in held.instances if i.endpoint in workers}
    assert len(shown.within(OURS)) == 4


def test_a_frontend_shows_other_deployments_too() -> None:
    view = instances(*said("frontend_health"))
    assert {i.namespace for i in view.instances} == {"lab_qwen", "lab_big", "lab-two_qwen"}
    assert {i.namespace for i in view.within(OURS)} == {"lab_qwen", "lab_big"}
    assert {(i.namespace, i.component) for i in view.within("lab_big")} == {
        ("lab_big", "prefill"),
        ("lab_big", "backend"),
    }


def test_a_worker_is_found_by_its_request_plane_address() -> None:
    view = registry(*said("etcd_range_instances"))
    for found in view.within(OURS):
        assert view.at(found.host, found.port) == {found}
    assert view.at("127.0.0.1", 1) == frozenset()


def test_two_lives_on_one_port_are_both_shown() -> None:
    now = Instance("lab_qwen", "backend", "generate", 2, "127.0.0.1", 18100)
    before = replace(now, instance_id=1)
    assert View(True, frozenset({now, before}), "").at("127.0.0.1", 18100) == {now, before}


def test_the_file_store_holds_the_same() -> None:
    recorded = page("file_store")
    files = {name: text.encode() for name, text in recorded["files"].items() if name.startswith("v1/instances/")}
    (found,) = stored(files).at("127.0.0.1", recorded["rpc"])
    assert (found.namespace, found.component) == ("lab_qwen", "backend")
    assert f"{found.instance_id:x}" in next(name for name in files if "generate" in name)


def test_a_half_written_file_is_left_out() -> None:
    assert stored({"v1/instances/x": b'{"type":"Endpoint","namesp'}) == View(
        True, frozenset(), "the file store holds 0 registered endpoints"
    )


def test_empty_is_not_unknown() -> None:
    assert instances(*said("frontend_health_empty")).known
    assert registry(*said("etcd_range_empty")) == View(True, frozenset(), "etcd holds 0 registered endpoints")
    assert not instances(*said("frontend_health_stopping")).known
    assert not registry(0, b"timed out").known


def test_without_etcd_a_frontend_shows_nobody_and_sounds_healthy() -> None:
    """So an empty view never proves that a worker is gone."""
    assert said("frontend_health_without_etcd") == said("frontend_health_empty")


def test_models() -> None:
    assert models(*said("models")).names == {"qwen", "big"}
    assert models(*said("models_empty")).known
    assert models(*said("models_empty")).names == frozenset()
    stopping = models(*said("models_stopping"))
    assert not stopping.known
    assert stopping.reason == "frontend lists no models: HTTP 503: Service is not ready"


@pytest.mark.parametrize(
    ("tcp", "host", "port"),
    [
        ("10.1.0.12:18042/a3ea1fd8965462f/generate", "10.1.0.12", 18042),
        ("[fd00::12]:18042/a3ea1fd8965462f/generate", "fd00::12", 18042),
        ("gpu02.lab:18042", "gpu02.lab", 18042),
        ("10.1.0.12", "", 0),
        (":18042/x", "", 0),
        ("10.1.0.12:18042a/x", "", 0),
        ("10.1.0.12:999999999/x", "", 0),
        ("10.1.0.12:\u0662/x", "", 0),
    ],
)
def test_addresses(tcp: str, host: str, port: int) -> None:
    written = {"namespace": "n", "component": "c", "endpoint": "e", "instance_id": 7, "transport": {"tcp": tcp}}
    assert instance(written) == Instance("n", "c", "e", 7, host, port)


def test_another_request_plane_has_no_address() -> None:
    written = {"namespace": "n", "component": "c", "endpoint": "e", "instance_id": 7, "transport": {"nats": "subject"}}
    assert instance(written) == Instance("n", "c", "e", 7)


def test_ids_beyond_2_to_53_stay_exact() -> None:
    body = json.dumps({"instances": [{"namespace": "n", "component": "c", "endpoint": "e", "instance_id": 2**63 - 1}]}).encode()
    assert {i.instance_id for i in instances(200, body).instances} == {2**63 - 1}
