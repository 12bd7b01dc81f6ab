"""A wide look: who claims a GPU, its neighbours, its health. What one question fails at costs its own answer only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from supervisor.runtime.parse import gpus_seen
from tests.fakes.nvml import NOT_SUPPORTED, UNKNOWN, FakeGpus
from tests.hostside.driver import Host, Link
from tests.hostside.test_gpus import Owner, fake, owned, owner

__all__ = ["fake", "owned", "owner"]  # fixtures

HEALTHY = {"util_percent": 87, "temp_c": 64, "power_w": 512.5, "power_limit_w": 650.0, "ecc": True, "ecc_errors": 3}


def wide(owner: Owner) -> Any:
    return owner("gpus.look(20, wide=True)")


def test_every_field_of_a_card_that_has_it(fake: FakeGpus, owner: Owner) -> None:
    fake.set(count=3, cuda=12080)
    fake.gpu("*", numa=1, nvlink="0,2", util=87, temp=64, power_mw=512500, limit_mw=650000, ecc_errors=3)
    look = wide(owner)
    first, _, last = look.gpus
    assert (look.driver, look.cuda) == ("580.95.05", "12.8")
    assert (first.numa, list(first.nvlink), first.health, first.unsaid) == (1, [2], HEALTHY, {})
    assert list(last.nvlink) == [0]
    assert first.claim is None


def test_what_a_card_has_not_is_none_without_a_reason(fake: FakeGpus, owner: Owner) -> None:
    fake.gpu("*", numa=-1, power_mw=-1, limit_mw=-1, ecc=-1)
    fake.fail("nvmlDeviceGetPciInfo_v3", NOT_SUPPORTED)
    fake.fail("nvmlSystemGetCudaDriverVersion_v2", NOT_SUPPORTED)
    look = wide(owner)
    card = look.gpus[0]
    assert (look.cuda, card.numa, list(card.nvlink), card.unsaid) == (None, None, [], {})
    none = {"power_w": None, "power_limit_w": None, "ecc": None, "ecc_errors": None}
    assert card.health == {"util_percent": 0, "temp_c": 31, **none}


QUESTIONS = {
    "nvmlDeviceGetUtilizationRates": "util_percent",
    "nvmlDeviceGetTemperature": "temp_c",
    "nvmlDeviceGetPowerUsage": "power_w",
    "nvmlDeviceGetEnforcedPowerLimit": "power_limit_w",
    "nvmlDeviceGetEccMode": "ecc",
    "nvmlDeviceGetTotalEccErrors": "ecc_errors",
    "nvmlDeviceGetP2PStatus": "nvlink",
}


def test_every_question_that_fails_says_so_and_hides_nothing_else(fake: FakeGpus, owner: Owner) -> None:
    for function in QUESTIONS:
        fake.fail(function, UNKNOWN, 0)
    failed, fine = wide(owner).gpus
    assert failed.unsaid == dict.fromkeys(QUESTIONS.values(), "Unknown Error")
    assert set(failed.health.values()) == {None}
    assert (failed.error, failed.uuid, failed.total_mib) == ("", fake.uuid(0), 143771)
    assert fine.health["temp_c"] == 31
    assert fine.unsaid == {}


def test_a_narrow_look_asks_none_of_it(fake: FakeGpus, owner: Owner) -> None:
    fake.hang("nvmlDeviceGetTemperature")
    assert owner.look().gpus[0].health is None


# --- claims, through a link -----------------------------------------------------------------------------------------------


@pytest.fixture
def link(fake: FakeGpus) -> Iterator[Link]:
    host = Host(env=fake.env)
    yield host.link()
    host.close()


def seen(link: Link) -> Any:
    return gpus_seen("a", link.reply(op="gpus")["gpus"]).gpus


def test_a_claimed_gpu_tells_whose_and_its_holders_are_no_strangers(fake: FakeGpus, link: Link) -> None:
    pid = link.started(gpus=[0])["pid"]
    fake.hold(0, pid, 700)
    fake.hold(1, pid, 300)
    first, second = seen(link)
    assert {key: first.claim[key] for key in ("deployment", "process", "run", "controller")} == {
        "deployment": link.host.deployment, "process": "w-0", "run": "r1", "controller": "c1",
    }  # fmt: skip
    assert first.claim["user"]
    assert (len(first.holders), first.strangers) == (1, ())
    assert (second.claim, len(second.strangers)) == ({}, 1)
    assert f"pid {pid} (sleep 1000" in second.strangers[0]


def test_graphics_are_no_stranger(fake: FakeGpus, link: Link) -> None:
    fake.hold(0, link.started()["pid"], 50, "graphics")
    first = seen(link)[0]
    assert (len(first.holders), first.strangers) == (1, ())
