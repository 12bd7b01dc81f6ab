"""Hosts that differ in what a login is and agree in what should tell them apart: one $HOME, one machine-id, every shell.

One deployment over all of them, with names that a shell would look at and a secret that nobody may hear.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from supervisor.errors import HostRefused
from supervisor.transport import bootstrap, transport_for
from supervisor.transport.base import Channel, HostAddress
from tests.e2e.lab import FAST, ROOT, Lab
from tests.e2e.procs import alive, environ
from tests.hosts.bed import Bed, missing

pytestmark = pytest.mark.root

SECRET = f"s3cret-{uuid.uuid4()}"
ODD = "a  b\t'c' \"d\" $(touch /run/touched) `touch /run/touched` ${HOME} ; & | > < \\ ! ~ * # é 模型\n-- second line "
CHATTY = "echo welcome; echo news >&2; printf 'no end of line'\n"
RECORDER = """\
#!/bin/sh
for word; do printf '%s\\0' "$word"; done >>{place}/recorded
exec /bin/sh "$@"
"""
# A mount whose server never answers: whoever looks at it hangs.
DEAD_MOUNT = """
import ctypes, os, time
os.mknod("/run/fuse", 0o20600, os.makedev(10, 229))
os.mkdir("/run/dead")
options = "fd=%d,rootmode=40000,user_id=0,group_id=0" % os.open("/run/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
failed = libc.mount(b"server:/export", b"/run/dead", b"fuse", 0, options.encode())
print(os.strerror(ctypes.get_errno()) if failed else "mounted", flush=True)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    shells = {"talks": "bash", "plain": "dash", "fishes": "fish", "cshells": "tcsh"}
    if why := missing(*shells.values()):
        pytest.skip(why)
    lab = Lab(tmp_path_factory.mktemp("l"))
    hosts = {name: {"shell": shutil.which(shell)} for name, shell in shells.items()}
    recorder = lab.place / "recorder"
    recorder.write_text(RECORDER.format(place=lab.place))
    recorder.chmod(0o755)
    hosts["records"] = {"shell": str(recorder)}
    with Bed(lab.place, hosts, env={"NORAY_TEST": lab.mark}, one_home=True, clones=True) as bed, lab:
        bed["talks"].file("/root/.bashrc").write_text(CHATTY)
        assert bed["talks"].ssh("true") == "welcome\nno end of line"
        odd = lab.model.rename(lab.place / "mo del $(touch touched) 'é'")
        lab.deployment["etcd"]["host"], lab.deployment["frontend"]["host"] = "talks", "plain"
        lab.deployment["models"] = [
            lab.service(model=str(odd), replicas=3, hosts=["fishes", "cshells", "records"], env={"ODD": ODD},
                        args={**FAST, "aic_system": ODD}, extra_args=["--aic-backend-version", ODD])
        ]  # fmt: skip
        lab.over(bed)
        (lab.place / "secrets.env").write_text(f"TEST_TOKEN={SECRET}\n")
        yield lab
        if lab.living():
            lab.down()


@pytest.fixture(scope="module")
def eavesdropper(lab: Lab) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, str(ROOT / "tests" / "fakes" / "eavesdropper.py")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(SECRET)
        process.stdin.flush()
        assert process.stdout.readline() == "sees\n"
        yield process
        process.kill()


@pytest.fixture(scope="module")
def running(lab: Lab, eavesdropper: object) -> Lab:
    lab.up()
    return lab


def bed_of(lab: Lab) -> Bed:
    assert lab.bed is not None
    return lab.bed


def test_it_serves_and_every_host_has_its_own_runs(running: Lab) -> None:
    running.chat()
    bed, seen = bed_of(running), running.status()
    assert {p["name"]: p["host"] for p in seen["processes"]} == {
        "etcd-0": "talks", "frontend-0": "plain", "mock-0": "fishes", "mock-1": "cshells", "mock-2": "records",
    }  # fmt: skip
    assert {host["name"]: host["boot_id"] for host in seen["hosts"]} == {host.name: host.boot_id for host in bed}
    for host in bed:
        base = host.file(f"/var/lib/noray/{bed['talks'].machine_id}/runs/{running.name}")
        kept = {path.name for path in base.iterdir() if path.is_dir()}
        assert kept == {p["name"] for p in seen["processes"] if p["host"] == host.name}


def test_words_that_a_shell_would_look_at_arrive_as_they_are(running: Lab) -> None:
    odd = running.deployment["models"][0]["model"].encode()
    for process in ("mock-0", "mock-1", "mock-2"):
        pid = running.pid(process)
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        after = {word: words[words.index(word) + 1] for word in (b"--aic-system", b"--aic-backend-version", b"--model-path")}
        assert after == {b"--aic-system": ODD.encode(), b"--aic-backend-version": ODD.encode(), b"--model-path": odd}
        assert b"ODD=" + ODD.encode() in environ(pid).split(b"\0")
        assert b"TEST_TOKEN=" + SECRET.encode() in environ(pid).split(b"\0")
    assert not any(host.file("/run/touched").exists() for host in bed_of(running))
    assert not [*running.place.glob("touched"), *Path("/run").glob("touched")]


def test_a_new_controller_adopts_every_run(running: Lab) -> None:
    before = {p["name"]: (p["run"], running.pid(p["name"])) for p in running.status()["processes"]}
    running.kill_controller()
    assert all(alive(pid) for _, pid in before.values())
    running.up()
    running.ready()
    assert {p["name"]: (p["run"], running.pid(p["name"])) for p in running.status()["processes"]} == before


def test_hosts_says_how_it_gets_there_and_what_the_login_printed(running: Lab) -> None:
    said = running.noray("hosts", "-v", "talks", "fishes").stdout
    settings = [line.split() for line in said.splitlines()]
    assert ["address", bed_of(running)["talks"].address, "hosts.yaml"] in settings
    assert "welcome" in said
    assert said.count("printed at login") == 1, "fish printed nothing"


def test_new_host_keys_are_shown_once_pinned_and_then_known(running: Lab) -> None:
    site = running.place / "site"
    site.mkdir()
    inventory = {"hosts": {name: {**keys, "known_hosts": "known_hosts"} for name, keys in running.hosts["hosts"].items()}}
    (site / "hosts.yaml").write_text(json.dumps(inventory))
    (site / "known_hosts").touch()
    files = ("-i", str(site / "hosts.yaml"))
    assert "REFUSED" in running.noray("hosts", *files, "plain", code=1).stdout
    assert (site / "known_hosts").read_text() == ""
    bed = bed_of(running)
    said = running.noray("hosts", "--trust", "--yes", *files).stdout
    pinned = (site / "known_hosts").read_text().splitlines()
    assert sorted(line.split()[0] for line in pinned) == sorted(host.address for host in bed)
    assert said.count("SHA256:") == len(pinned)
    assert running.noray("hosts", "--json", *files, "plain").returncode == 0
    assert "SHA256:" not in running.noray("hosts", "--trust", *files).stdout, "nothing new"


def test_no_shell_saw_anything_but_the_constant_command_and_nobody_heard_the_secret(
    running: Lab, eavesdropper: subprocess.Popen[str]
) -> None:
    verbs = (("plan", "-v", *running.files), ("plan", "-v", "--json", *running.files), ("status", "-a"), ("status", "--json"),
             ("why",), ("logs", "-n", "9999", "etcd", "frontend", "mock"), ("down", "--yes"))  # fmt: skip
    said = {verb: running.noray(*verb).stdout for verb in verbs}
    assert not running.living()
    assert not running.claims()
    assert all(name in said[verbs[5]] for name in ("etcd-0", "frontend-0", "mock-0", "mock-1", "mock-2"))
    assert [verb for verb, text in said.items() if SECRET in text] == []

    report = json.loads(eavesdropper.communicate()[0])
    assert report["looks"] > 100
    assert report["heard"] == []

    bed = bed_of(running)
    tops = [entry for host in bed for path in ("/run", "/tmp", "/dev/shm") for entry in host.file(path).iterdir()]
    roots = [running.place, *(top for top in tops if top.name not in running.place.parts)]  # our place once is enough
    found = (path for root in roots for path in (root, *root.rglob("*")))
    files = [path for path in found if path.is_file() and "cgroups" not in path.parts]
    assert {path.name for path in files} >= {"spec.json", "run.json", "controller.log"}
    assert {path for path in files if SECRET.encode() in path.read_bytes()} == {running.place / "secrets.env"}

    command = bootstrap.command(HostAddress("records", python=sys.executable))
    recorded = (running.place / "recorded").read_text().split("\0")[:-1]
    assert len(recorded) >= 4
    assert set(zip(recorded[::2], recorded[1::2], strict=True)) == {("-c", command)}


# --- directories that more than one host may see --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def link(bed: Bed, name: str, host_dir: Path) -> AsyncIterator[Channel]:
    at = HostAddress(name, "ssh", bed[name].address, user="root", python=sys.executable, known_hosts=bed.known_hosts,
                     key=bed.key, host_dir=str(host_dir))  # fmt: skip
    transport = transport_for(at)
    try:
        yield await transport.open("link", 10)
    finally:
        await transport.aclose()


def test_two_machines_with_one_machine_id_and_one_directory(lab: Lab) -> None:
    bed, shared = bed_of(lab), lab.place / "shared"

    async def meet() -> None:
        async with link(bed, "talks", shared), link(bed, "talks", shared):
            with pytest.raises(HostRefused, match="in use by another machine with the same machine-id, talks") as refused:
                async with link(bed, "plain", shared):
                    pass
            assert "host_dir" in refused.value.hint
        async with link(bed, "plain", shared):  # they have left
            pass
        bed["plain"].reboot()
        async with link(bed, "plain", shared):
            pass

    anyio.run(meet)


def test_a_network_file_system_that_does_not_answer_is_refused_by_name(lab: Lab) -> None:
    host = bed_of(lab)["plain"]

    async def look() -> None:
        with anyio.fail_after(8), pytest.raises(HostRefused, match=r"/run/dead/noray is on a network file system \(fuse\)"):
            async with link(bed_of(lab), "plain", Path("/run/dead/noray")):
                pass

    argv = ["nsenter", "-t", str(host.init), "-a", sys.executable, "-c", DEAD_MOUNT]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = server.stdout.readline().strip()
        if said == "No such device":
            pytest.skip("this kernel has no FUSE")
        assert said == "mounted"
        anyio.run(look)
        host.inside("umount", "--lazy", "/run/dead")
        server.kill()
