"""`gpus` of a model: each mistake at its place, and who gets which."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.spec import SpecError, parse_deployment
from supervisor.spec.env_file import load_env_file
from supervisor.spec.gpus import seats
from tests.spec.reading import GOOD, TWO, deployment_errors, inventory_errors

UUID = "GPU-0e6d6c59-7f0a-d075-d468-cd8e712015e1"
MIG = "MIG-1c6fad5a-0b1f-5f5a-b5d5-000000000001"
SORT = "the index of a GPU (0, 1, …), or its UUID (GPU-… or MIG-…)"
OURS = "any other; noray sets this one for every process (list a model's GPUs under its key `gpus`)"
SECOND = "  - {name: b, model: /m, engine: mocker, gpus: "


VLLM = GOOD.replace("mocker", "vllm")


def model(*lines: str) -> str:
    """GOOD with more lines in its model, from line 6 on, column 5."""
    return GOOD + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (model("gpus: {gpu01: [0, -1]}"), f"6:23: models[0].gpus.gpu01[1]: found -1, allowed: {SORT}"),
        (model("gpus: {gpu01: [GPU 0]}"), f"6:20: models[0].gpus.gpu01[0]: found 'GPU 0', allowed: {SORT}"),
        (model("gpus: {gpu01: [true]}"), f"6:20: models[0].gpus.gpu01[0]: found true, allowed: {SORT}"),
        (model("gpus: {gpu01: []}"), "6:19: models[0].gpus.gpu01: found an empty list, allowed: at least one entry"),
        (model("gpus: {gpu01: 0}"), "6:19: models[0].gpus.gpu01: found 0, allowed: a list"),
        (
            model("gpus: {gpu9: [0]}"),
            "6:12: models[0].gpus: found the key 'gpu9', allowed: a host of the inventory (gpu01, gpu02), "
            "did you mean 'gpu02'?",
        ),
        (
            model("hosts: [gpu01]", "gpus: {gpu02: [0]}"),
            "7:12: models[0].gpus: found the key 'gpu02', allowed: a host that `hosts` names (gpu01)",
        ),
        (
            model(f"gpus: {{gpu01: [0, {UUID}]}}"),
            "6:19: models[0].gpus.gpu01: found a list, allowed: indexes only, or UUIDs only: "
            "CUDA does not take both in one list",
        ),
        (
            model("gpus: {gpu01: [0, 1, 0]}"),
            "6:26: models[0].gpus.gpu01[2]: found 0, which models[0].gpus.gpu01[0] has, allowed: each GPU once",
        ),
        (
            model("gpus: {gpu01: [0, 1]}") + SECOND + "{gpu01: [2, 1]}}\n",
            "7:60: models[1].gpus.gpu01[1]: found 1, which models[0].gpus.gpu01[1] has, allowed: each GPU once",
        ),
        (
            model(f"gpus: {{gpu01: [{UUID}]}}") + SECOND + f"{{gpu02: [{UUID}]}}}}\n",
            f"7:57: models[1].gpus.gpu02[0]: found '{UUID}', which models[0].gpus.gpu01[0] has, allowed: each GPU once",
        ),
        (
            model("replicas: 3", "gpus: {gpu01: [0], gpu02: [0]}"),
            "7:11: models[0].gpus: found room for 2, allowed: 1 GPU of one host for each of the 3 replicas",
        ),
        (
            model("replicas: 3", "args: {tensor_parallel_size: 2}", "gpus: {gpu01: [0, 1, 2], gpu02: [0, 1, 2]}"),
            "8:11: models[0].gpus: found room for 2, allowed: 2 GPUs of one host for each of the 3 replicas",
        ),
        (
            model("args: {tensor_parallel_size: two}", "gpus: {gpu01: [0]}"),
            "6:34: models[0].args.tensor_parallel_size: found 'two', allowed: an integer of at least 1",
        ),
        (
            model("extra_args: [--tensor-parallel-size=2]", "gpus: {gpu01: [0]}"),
            "6:18: models[0].extra_args[0]: found '--tensor-parallel-size=2', allowed: the parallel sizes in args, "
            "as they say how many GPUs a replica takes",
        ),
        (
            model("extra_args: [-pp, '2']", "gpus: {gpu01: [0]}"),
            "6:18: models[0].extra_args[0]: found '-pp', allowed: the parallel sizes in args, "
            "as they say how many GPUs a replica takes",
        ),
    ],
)
def test_one_error_at_its_place(text: str, error: str) -> None:
    assert deployment_errors(text) == [f"d.yaml:{error}"]


def placed(*lines: str) -> list[tuple[str, tuple[int | str, ...]]]:
    found = parse_deployment(model(*lines), TWO).models[0]
    return list(seats(found)[: found.replicas])


def test_replicas_take_them_in_the_order_written_and_spread() -> None:
    assert placed("replicas: 4", "gpus: {gpu02: [3, 1], gpu01: [0, 2]}") == [
        ("gpu02", (3,)), ("gpu01", (0,)), ("gpu02", (1,)), ("gpu01", (2,)),
    ]  # fmt: skip


def test_as_many_each_as_the_engine_is_told() -> None:
    two = "args: {tensor_parallel_size: 2}"
    uuids = f"gpus: {{gpu01: [0, 1, 2, 3, 4], gpu02: [{UUID}, {MIG}]}}"
    assert placed("replicas: 3", two, uuids) == [("gpu01", (0, 1)), ("gpu02", (UUID, MIG)), ("gpu01", (2, 3))]


def test_all_parallel_sizes_count() -> None:
    sizes = "args: {tensor_parallel_size: 2, pipeline_parallel_size: 2}"
    assert placed(sizes, "gpus: {gpu01: [0, 1, 2, 3, 4]}") == [("gpu01", (0, 1, 2, 3))]


def test_no_gpus_may_be_meant() -> None:
    assert not deployment_errors(VLLM + "    gpus: {}\n")


def test_the_same_number_on_two_hosts_is_two_gpus() -> None:
    assert not deployment_errors(model("gpus: {gpu01: [0]}") + SECOND + "{gpu02: [0]}}\n")


def test_hosts_are_those_of_the_gpus_unless_said() -> None:
    assert parse_deployment(model("gpus: {gpu02: [0]}"), TWO).models[0].hosts == ("gpu02",)


@pytest.mark.parametrize("key", ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"])
def test_nobody_else_says_which_gpus_a_process_sees(key: str, tmp_path: Path) -> None:
    said = f"found the key '{key}', allowed: {OURS}"
    assert deployment_errors(model(f"env: {{{key}: '0'}}")) == [f"d.yaml:6:11: models[0].env: {said}"]
    assert deployment_errors(f"{GOOD}env: {{{key}: '0'}}\n") == [f"d.yaml:6:7: env: {said}"]
    host = f"hosts: {{a: {{python: /p, env: {{{key}: '0'}}}}}}\n"
    assert inventory_errors(host) == [f"h.yaml:1:31: hosts.a.env: {said}"]
    secrets = tmp_path / "secrets.env"
    secrets.write_text(f"A=1\n{key}=0\n")
    secrets.chmod(0o600)
    with pytest.raises(SpecError) as wrong:
        load_env_file(secrets)
    assert str(wrong.value) == f"{secrets}:2:1: found the key {key}, allowed: {OURS}"
