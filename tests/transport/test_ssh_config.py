"""ssh_config: read as ssh(1) reads it (`ssh -G` is the judge), each value with its line, and what we do not honour."""

from __future__ import annotations

import getpass
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from supervisor.errors import HostRefused
from supervisor.transport import HostAddress
from supervisor.transport.ssh import Route, aliases, config, settings
from supervisor.transport.ssh.config import Lookup
from supervisor.transport.ssh.words import matches, split
from tests.fakes.sshd import MISSING

SSH = shutil.which("ssh")
judged = pytest.mark.skipif(SSH is None, reason=MISSING or "no ssh here (Debian: apt-get install openssh-client)")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the user, with `.ssh`; the system's file is `etc/ssh_config` beside it."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(config, "SYSTEM", tmp_path / "etc" / "ssh_config")
    return home


def judge(path: Path, alias: str) -> dict[str, list[str]]:
    told = subprocess.run([str(SSH), "-G", "-F", str(path), alias], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in told.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def ours(path: Path, alias: str) -> dict[str, object]:
    found = Lookup(alias).read([path])
    return {
        "hostname": [found.host],
        "port": [str(found.where)],
        "user": [found.login],
        "identityfile": [said.words[0] for said in found.all("identityfile")] or None,
        "proxy": found.way.value if found.way else None,
        "hostkeyalias": found.one("hostkeyalias"),
        "identitiesonly": [(found.one("identitiesonly") or "no").lower()],
    }


def theirs(path: Path, alias: str) -> dict[str, object]:
    found = judge(path, alias)
    return {
        "hostname": found["hostname"],
        "port": found["port"],
        "user": found["user"],
        "identityfile": found["identityfile"] if "id_xmss" not in str(found["identityfile"]) else None,
        "proxy": (found.get("proxyjump") or found.get("proxycommand") or [None])[0],
        "hostkeyalias": (found.get("hostkeyalias") or [None])[0],
        "identitiesonly": found["identitiesonly"],
    }


HARD = {
    "first value wins, keys add up": """\
        Host gpu*
          User = first
          IdentityFile /k/one
        Host gpu01
          User second
          Port=2201
          IdentityFile "/k/two words"
          IdentityFile /k/one
        Host *
          Port 22
        """,
    "negation, several patterns, comments": """\
        # nothing
        Host !gpu02 gpu0? # gpu02
          HostName %h.cluster  # its full name
        Host gpu02 !gpu*
          Port 1
        Match originalhost gpu01,!gpu02 host *.cluster
          Port 2222
        """,
    "match by user, by program, for all": """\
        Host gpu01
          User bob
        Match user bob exec "test %n = gpu01"
          HostName 10.0.0.1
        Match exec "false"
          Port 1
        Match !exec "false" all
          Port 7
        Match user alice exec "kill $PPID"
          Port 2
        """,
    "final": """\
        Match final host 10.*
          IdentityFile /k/%h
          Port 2022
        Host gpu01
          HostName 10.0.0.1
        Match canonical
          Port 1
        """,
    "of jump and command the first": """\
        Host gpu01
          ProxyJump ubuntu@gate:2200,inner
          ProxyCommand nc %h %p
        Host gpu02
          ProxyCommand sh -c 'exec nc "$1" %p' x %h
          ProxyJump gate
        Host *
          ProxyJump none
          HostKeyAlias lab
          IdentitiesOnly yes
        """,
    "one file inside another": """\
        Host gpu01
          Include {folder}/inner.d/*.conf
          Port 2201
        Host other
          Include {folder}/inner.d/20.conf
        Host *
          HostName from-outside
        """,
}


@judged
@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("alias", ["gpu01", "gpu02", "other"])
def test_we_read_as_ssh_does(tmp_path: Path, case: str, alias: str) -> None:
    (tmp_path / "inner.d").mkdir()
    (tmp_path / "inner.d" / "20.conf").write_text("User twenty\nHost other\n  HostName inner-other\n")
    (tmp_path / "inner.d" / "10.conf").write_text("Host gpu01\n  User ten\n  Port 10\nHost nobody\n  Port 11\n")
    path = tmp_path / "config"
    path.write_text(HARD[case].replace("{folder}", str(tmp_path)))
    assert ours(path, alias) == theirs(path, alias)


word = st.sampled_from(["gpu01", "gpu*", "!gpu02", "*", "!*1", "gpu0?", '"gpu01"', "other", "# gpu01"])
line = st.one_of(
    st.builds("Host {}".format, st.lists(word, min_size=1, max_size=3).filter(lambda w: w[0][0] != "#").map(" ".join)),
    st.builds(
        "Match {} {}".format,
        st.sampled_from(["host", "!host", "originalhost", "user"]),
        st.sampled_from(["gpu01,a*", "b?b", "*"]),
    ),
    st.builds("  HostName {}".format, st.sampled_from(["a1", "%h.b", '"a 2"', "'a3' # x"])),
    st.builds("  User{}{}".format, st.sampled_from([" ", "=", " = "]), st.sampled_from(["bob", '"bob"', "ann"])),
    st.builds("\tport {}".format, st.integers(1, 65535)),
    st.builds("  IdentityFile {}".format, st.sampled_from(["/k/a", '"/k/b c"', r"/k/d\ e", r"/k/\x", "none"])),
    st.sampled_from(
        [
            "",
            "# Host gpu01",
            "  ProxyJump a,b",
            "  ProxyJump none",
            "  ProxyCommand nc %h '%p' # x",
            "  ProxyCommand none",
            "Match final",
            "Match all",
        ]
    ),
)


@judged
@effort(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(line, max_size=12), alias=st.sampled_from(["gpu01", "gpu02", "other"]))
def test_we_read_whatever_ssh_reads(tmp_path: Path, lines: list[str], alias: str) -> None:
    path = tmp_path / "config"
    path.write_text("\n".join(lines) + "\n")
    assert ours(path, alias) == theirs(path, alias)


def test_words() -> None:
    assert split(r"""a "b c" d\ e 'f"g' \x \"h # i""") == ["a", "b c", "d e", 'f"g', r"\x", '"h']
    with pytest.raises(ValueError, match="not closed"):
        split("a 'b")
    assert matches("gpu01", ["gpu*", "!gpu02"])
    assert not matches("gpu02", ["gpu*", "!gpu02"])
    assert not matches("gpu01", ["!gpu02"])


def shown(route: Route, hop: int = -1) -> dict[str, tuple[str, str]]:
    return {each.name: (each.value, each.place) for each in route.hops[hop].settings}


@pytest.mark.anyio
async def test_each_value_has_its_place_and_the_inventory_wins(home: Path) -> None:
    """The user's file before the system's; a file of the site instead of both."""
    (home / ".ssh" / "config").write_text(
        "Host gpu01\n  HostName 10.0.0.1\n  User bob\n  IdentityFile ~/.ssh/lab\n  Port 2201\n"
    )
    config.SYSTEM.write_text("Host *\n  Port 1\n  User nobody\n  HostKeyAlias lab\n")
    pins = str(home / ".ssh" / "known_hosts")
    assert shown(await settings(HostAddress("gpu01", "ssh"))) == {
        "address": ("10.0.0.1", "~/.ssh/config:2"),
        "port": ("2201", "~/.ssh/config:5"),
        "user": ("bob", "~/.ssh/config:3"),
        "identity": (str(home / ".ssh" / "lab"), "~/.ssh/config:4"),
        "host key alias": ("lab", f"{config.SYSTEM}:4"),
        "known hosts": (pins, "default"),
    }
    told = HostAddress("gpu01", "ssh", "10.9.9.9", 22, "ann", known_hosts=Path("/kh"), key=Path("/key"))
    (home / ".ssh" / "config").write_text(
        "Host *\n  HostName elsewhere\n  User bob\n  IdentityFile ~/.ssh/lab\n  Port 2201\n  ProxyCommand nc %h %p\n"
    )
    route = await settings(told)
    assert {name: at for name, (_, at) in shown(route).items()} == dict.fromkeys(
        ["address", "port", "user", "identity", "known hosts"], "hosts.yaml"
    ) | {"host key alias": f"{config.SYSTEM}:4", "proxy command": "~/.ssh/config:6"}
    hop = route.hops[-1]
    assert (hop.host, hop.port, hop.user, [each.path for each in hop.identities]) == ("10.9.9.9", 22, "ann", [Path("/key")])
    assert [each.directive for each in hop.ignored] == ["HostName elsewhere"]
    assert hop.proxy_command == "nc 10.9.9.9 22"

    site = home / "site_config"
    site.write_text("Host gpu01\n  HostName of-the-site\n")
    only = shown(await settings(HostAddress("gpu01", "ssh", ssh_config=site)))
    assert only["address"] == ("of-the-site", "~/site_config:2")
    assert only["user"] == (getpass.getuser(), "default")


@pytest.mark.anyio
async def test_hops_with_users_and_ports_of_their_own(home: Path) -> None:
    (home / ".ssh" / "config").write_text("""\
Host gpu01
  ProxyJump ann@inner:2200,[::1],outer
Host inner
  HostName 10.0.0.2
  User bob
  ProxyJump gate
Host gate
  Port 2222
Host outer
  ProxyCommand nc %h %p
""")
    route = await settings(HostAddress("gpu01", "ssh"))
    me = getpass.getuser()
    assert [(hop.alias, hop.host, hop.user, hop.port) for hop in route.hops] == [
        ("gate", "gate", me, 2222),
        ("inner", "10.0.0.2", "ann", 2200),
        ("::1", "::1", me, 22),
        ("outer", "outer", me, 22),
        ("gpu01", "gpu01", me, 22),
    ]
    assert [hop.proxy_command for hop in route.hops] == [""] * 5, "a hop behind another is reached through that one"
    assert shown(route, 1)["user"] == ("ann", "~/.ssh/config:2")
    assert shown(route, 1)["jump"] == ("gate", "~/.ssh/config:6")
    assert [each.instead for each in route.hops[3].ignored] == ["it is reached through the jump host before it"]


@pytest.mark.anyio
async def test_what_is_not_honoured_is_said(home: Path) -> None:
    (home / ".ssh" / "config").write_text("""\
Host gpu01
  StrictHostKeyChecking no
  ControlMaster auto
  VisualHostKey yes
Host gpu02
  ForwardAgent yes
Match localnetwork 10.0.0.0/8
  Port 1
""")
    hop = (await settings(HostAddress("gpu01", "ssh", known_hosts=Path("/kh")))).hops[-1]
    assert [(each.directive, each.place) for each in hop.ignored] == [
        ("StrictHostKeyChecking no", "~/.ssh/config:2"),
        ("ControlMaster auto", "~/.ssh/config:3"),
        ("VisualHostKey yes", "~/.ssh/config:4"),
        ("Match localnetwork 10.0.0.0/8", "~/.ssh/config:7"),
    ]
    assert hop.ignored[0].instead == "host keys are always checked, against /kh alone"
    assert hop.port == 22


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Host gpu01\n  Port ssh\n", "config:2: Port: found 'ssh', allowed: a port from 1 to 65535"),
        ("Host gpu01\n  User 'bob\n", "config:2: a ' that is not closed"),
        ("Host *\n  ProxyJump gate\n", "config:2: to reach gate, gate would have to be jumped over"),
        ("ProxyJump a:b:c\n", "config:1: ProxyJump: found 'a:b:c', allowed: [user@]host[:port], several with commas"),
        ("HostName %p\n", "config:1: HostName: %p means nothing here"),
        ("IdentityFile ${NO_SUCH}\n", "config:1: IdentityFile: the environment has no NO_SUCH"),
        ("Match moon full\n", "config:1: Match: there is no condition moon"),
        ("Include config\n", "config:1: Include: 16 files deep"),
    ],
)
async def test_mistakes_have_their_place(home: Path, text: str, error: str) -> None:
    (home / ".ssh" / "config").write_text(text)
    with pytest.raises(HostRefused) as raised:
        await settings(HostAddress("gpu01", "ssh"))
    assert f"cannot use the ssh settings for gpu01: ~/.ssh/{error}" in str(raised.value)


@pytest.mark.anyio
async def test_a_file_of_the_site_must_be_there(home: Path) -> None:
    assert (await settings(HostAddress("gpu01", "ssh"))).hops[-1].host == "gpu01", "those of ssh(1) may be missing"
    with pytest.raises(HostRefused, match="there is no such file"):
        await settings(HostAddress("gpu01", "ssh", ssh_config=home / "absent"))


def test_aliases_are_the_names_said_outright(home: Path) -> None:
    (home / ".ssh" / "more").write_text("Host inner\n")
    (home / ".ssh" / "config").write_text("Host gpu02 gpu*\nHost nobody !no gpu01\nInclude more\nHost *\nHost gpu02 last\n")
    config.SYSTEM.write_text("Host site\nHost inner\n")
    assert aliases(None) == ["gpu02", "nobody", "gpu01", "inner", "last", "site"]
