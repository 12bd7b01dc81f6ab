"""The tiny model: a tokenizer written by hand that the real library accepts, and that a real Dynamo serves."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.demo import model

NAMES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    model.write_tiny_model(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_four_files_and_no_weights(directory: Path) -> None:
    assert sorted(path.name for path in directory.iterdir()) == NAMES
    assert sum(path.stat().st_size for path in directory.iterdir()) < 20_000


def test_writing_it_again_changes_no_byte(directory: Path) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    model.write_tiny_model(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_the_configuration_fits_attention_kernels_and_the_tokenizer(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert config["head_dim"] == config["hidden_size"] // config["num_attention_heads"] == 64
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) <= config["vocab_size"]
    assert [vocabulary[token] for token in model.SPECIAL_TOKENS] == [0, 1, 2]


def test_it_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(model.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    "text",
    [
        "hello world, who are you?",
        "héllo ☃ 日本 🙂",
        "\x00\x7f\t\r\n  two  spaces ",
        "<|im_start|>user\nhi<|im_end|>\n",
    ],
)
def test_the_real_library_reads_it_and_round_trips(directory: Path, text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers (extra: dynamo)")
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


def test_common_words_are_one_token_each(directory: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers (extra: dynamo)")
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.encode("hello world this is a small model").tokens == [
        "hello",
        "Ġworld",
        "Ġthis",
        "Ġis",
        "Ġa",
        "Ġsmall",
        "Ġmodel",
    ]
    assert tokenizer.encode("<|im_start|>user").ids[0] == 1


def test_every_byte_has_a_symbol_of_its_own() -> None:
    symbols = model.byte_symbols()
    assert len(set(symbols)) == 256
    assert all(symbol.isprintable() and not symbol.isspace() for symbol in symbols)
    assert (symbols[ord("A")], symbols[ord(" ")], symbols[ord("\n")]) == ("A", "Ġ", "Ċ")


@pytest.mark.e2e
def test_a_real_frontend_and_mocker_serve_it(directory: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("dynamo") is None:
        pytest.skip("needs ai-dynamo (extra: dynamo)")
    http_port, system_port, request_port = _free_ports(3)
    common = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "DYN_FILE_KV": str(tmp_path / "registry"),
        "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
        "DYN_RUNTIME_NUM_WORKER_THREADS": "2",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
    }
    worker = {
        "DYN_SYSTEM_HOST": "127.0.0.1",
        "DYN_SYSTEM_PORT": str(system_port),
        "DYN_TCP_RPC_PORT": str(request_port),
    }
    discovery = ("--discovery-backend", "file")
    with (
        _running(tmp_path / "frontend.log", common, "dynamo.frontend", "--http-host", "127.0.0.1",
                 "--http-port", str(http_port), *discovery),
        _running(tmp_path / "mocker.log", common | worker, "dynamo.mocker", "--model-path", str(directory),
                 "--model-name", "tiny", "--speedup-ratio", "10", *discovery),
    ):  # fmt: skip
        answer = _complete(f"http://127.0.0.1:{http_port}/v1/chat/completions", tmp_path)
    assert answer["model"] == "tiny"
    assert answer["usage"]["completion_tokens"] == 4
    # The prompt went through the chat template and our merges: the library counts the same tokens.
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers (extra: dynamo)")
    prompt = "<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\n"
    encoded = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).encode(prompt)
    assert answer["usage"]["prompt_tokens"] == len(encoded.ids)


def _free_ports(count: int) -> list[int]:
    """Bind-tested ports below 32768: Dynamo 1.4.2 parses DYN_SYSTEM_PORT as a signed 16-bit number."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = random.randrange(20_000, 32_000)
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
    return ports


@contextlib.contextmanager
def _running(log: Path, environment: dict[str, str], module: str, *words: str) -> Iterator[None]:
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env=environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _complete(url: str, logs: Path) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello world"}], "max_tokens": 4}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 60
    while True:
        try:
            request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
            with opener.open(request, timeout=15) as response:
                return json.load(response)
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if time.monotonic() > deadline:
                tails = {log.name: log.read_text(errors="replace")[-2000:] for log in logs.glob("*.log")}
                pytest.fail(f"no completion within 60 s, last: {error}; {tails}")
            time.sleep(0.1)
