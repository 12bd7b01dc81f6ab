"""`noray service`: what it writes is what systemd's own tools pass, it overwrites nothing unasked, and it knows its keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from supervisor.cli import main, service
from supervisor.cli.render.unit import SHIPPED, Unit, quoted
from supervisor.control.server import serve
from supervisor.control.wire import Request
from supervisor.transport.ssh import config

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENT = "name: lab\netcd: {host: gpu01}\nfrontend: {host: gpu01}\nmodels:\n  - {name: q, model: m, engine: mocker}\n"
HOSTS = """\
defaults: {python: /opt/dynamo/bin/python, user: ubuntu, known_hosts: known_hosts}
hosts:
  gpu01: {address: 10.1.0.11, key: KEY}
"""
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: apt-get install systemd"
)


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files in a folder that a service can see, as far as it knows; and units in another."""
    monkeypatch.chdir(tmp_path)
    for name in ("NORAY_STATE", "NORAY_INVENTORY", "PYTHONPATH", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(config, "SYSTEM", tmp_path / "ssh_config")
    monkeypatch.setattr(service, "BOOTED", tmp_path)
    monkeypatch.setattr(service, "UNSEEN", ("/nowhere",))
    (tmp_path / "deployment.yaml").write_text(DEPLOYMENT)
    (tmp_path / "hosts.yaml").write_text(HOSTS.replace("KEY", key(tmp_path / "key")))
    (tmp_path / "known_hosts").touch()
    return tmp_path


def key(path: Path, passphrase: str = "") -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "lab", "-f", str(path)], check=True)
    return str(path)


def install(*words: str) -> int:
    return main(["service", "install", "deployment.yaml", "-i", "hosts.yaml", "--user", *words])


@pytest.fixture
def written(site: Path) -> Path:
    return site / "config/systemd/user/noray-lab.service"


def test_the_shipped_unit_is_what_install_writes() -> None:
    shipped = (ROOT / "systemd/noray.service").read_text()
    assert shipped == SHIPPED.text(), "python -m supervisor.cli.render.unit > systemd/noray.service"


@needs_analyze
@pytest.mark.parametrize("user", [False, True])
def test_systemd_has_nothing_to_say_against_it(tmp_path: Path, user: bool) -> None:
    unit = Unit("lab", (sys.executable, "-m", "supervisor", "serve", "/etc/a %h $b.yaml"), user, {"NORAY_STATE": "/a b"})
    path = tmp_path / unit.name
    path.write_text(unit.text())
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_analyze
def test_it_is_exposed_less_than_3() -> None:
    argv = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", str(ROOT / "systemd/noray.service")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:]


def test_what_ends_in_the_service_ends_nothing_else() -> None:
    said = set(SHIPPED.text().splitlines())
    assert {"Type=notify", "NotifyAccess=main", "OOMPolicy=continue", "KillMode=mixed", "Restart=on-failure"} <= said
    assert {"WatchdogSec=30", "RestartPreventExitStatus=2 3", "StartLimitBurst=10", "StateDirectory=noray/lab"} <= said


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("plain", "plain"),
        ("a b", '"a b"'),
        ("100%", "100%%"),
        ('say "x"', '"say \\"x\\""'),
        ("back\\", '"back\\\\"'),
        ("", '""'),
    ],
)
def test_words_arrive_as_they_are(word: str, written: str) -> None:
    assert quoted(word) == written


def test_install_writes_what_will_be_run_and_says_what_to_type(
    site: Path, written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install() == 0
    said = capsys.readouterr().out
    lines = written.read_text().splitlines()
    assert f"ExecStart={sys.executable} -m supervisor serve {site}/deployment.yaml -i {site}/hosts.yaml" in lines
    assert f"Environment=NORAY_STATE={site}/state/noray" in lines
    assert written.stat().st_mode & 0o777 == 0o644
    assert f"wrote {written}" in said
    for command in ("daemon-reload", "enable --now noray-lab.service"):
        assert f"  systemctl --user {command}" in said
    assert "loginctl enable-linger" in said  # nobody here lingers
    assert (site / "key.pub").read_text().strip() in said


def test_a_controller_that_is_there_already_is_told_about(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real one's ear, in our own process."""

    async def handle(request: Request) -> AsyncIterator[Mapping[str, object]]:
        yield {}

    with start_blocking_portal() as portal:
        ear, _ = portal.start_task(serve, site / "state/noray/lab/controller.sock", handle)
        assert install() == 0
        ear.cancel()
    assert f"kill {os.getpid()}" in capsys.readouterr().out


def test_what_noray_needs_to_be_found_the_service_needs_too(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/opt/noray")
    assert install() == 0
    assert "Environment=PYTHONPATH=/opt/noray" in written.read_text().splitlines()


def test_another_unit_is_shown_and_not_overwritten(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written.parent.mkdir(parents=True)
    written.write_text("mine\n")
    assert install() == 1
    assert "-mine" in capsys.readouterr().out
    assert written.read_text() == "mine\n"
    assert install("--yes") == 0
    text = written.read_text()
    assert install() == 0
    assert f"is so already: {written}" in capsys.readouterr().out
    assert written.read_text() == text


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("locked", "NEEDS A PASSPHRASE; a key without one"),
        ("gone", "THERE IS NO SUCH FILE; ssh-keygen -t ed25519"),
        ("junk", "IS NO PRIVATE KEY"),
    ],
)
def test_a_key_that_a_service_cannot_use_is_named_with_the_remedy(
    site: Path, capsys: pytest.CaptureFixture[str], state: str, said: str
) -> None:
    (site / "key").unlink()
    if state == "locked":
        (site / "key.pub").unlink()
        key(site / "key", "secret")
    elif state == "junk":
        (site / "key").write_text("junk\n")
    assert install() == 0
    assert said in capsys.readouterr().out


def test_keys_are_looked_for_at_home_where_the_services_user_is(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not where sudo has left HOME."""
    (site / "home/.ssh").mkdir(parents=True)
    key(site / "home/.ssh/id_ed25519")
    (site / "hosts.yaml").write_text(HOSTS.replace(", key: KEY", ""))
    (site / "known_hosts").unlink()
    monkeypatch.setattr(
        service.pwd, "getpwuid", lambda _: service.pwd.struct_passwd(("u", "x", 1, 1, "", str(site / "elsewhere"), ""))
    )
    assert install() == 0
    said = capsys.readouterr().out
    assert "no key for gpu01" in said
    assert f"host keys by {site}/known_hosts: NOT THERE" in said


@pytest.mark.parametrize(
    ("breakage", "says", "hint"),
    [
        ("no systemd", "systemd does not run this machine", "noray serve"),
        ("old systemd", "this is systemd 239", "248"),
        ("not root", "the machine's services are root's", "--user"),
        ("unseen", "/tmp of its own", "/etc/noray"),
        ("wrong file", "deployment.yaml", ""),
    ],
)
def test_refusals(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], breakage: str, says: str, hint: str
) -> None:
    argv = ["service", "install", "deployment.yaml", "-i", "hosts.yaml"]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if breakage == "no systemd":
        monkeypatch.setattr(service, "BOOTED", site / "nowhere")
    elif breakage == "old systemd":
        systemctl = site / "bin/systemctl"
        systemctl.parent.mkdir()
        systemctl.write_text("#!/bin/sh\necho systemd 239 '(239-82.el8)'\n")
        systemctl.chmod(0o755)
        monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
    elif breakage == "not root":
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    elif breakage == "unseen":
        monkeypatch.setattr(service, "UNSEEN", (str(site.parent),))
    else:
        (site / "deployment.yaml").write_text("name: [\n")
    monkeypatch.setattr(service.Manager, "folder", site / "units")
    assert main(argv) == (2 if breakage == "wrong file" else 1)
    said = capsys.readouterr().err
    assert says in said
    assert hint in said
    assert not (site / "units").exists()


def test_remove_of_what_is_not_there_and_of_one_of_several(
    site: Path, written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["service", "remove", "--user"]) == 1
    written.parent.mkdir(parents=True)
    for name in ("lab", "other"):
        written.with_name(f"noray-{name}.service").touch()
    assert main(["service", "remove", "--user"]) == 2
    assert "noray-lab.service, noray-other.service" in capsys.readouterr().err
    assert main(["service", "remove", "--user", "-d", "nobody"]) == 2
    assert main(["service", "remove", "--user", "-d", "lab"]) == 1  # not a terminal, and no --yes
    assert written.exists()
