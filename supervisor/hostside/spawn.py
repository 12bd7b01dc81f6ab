"""The start protocol: wherever power or a SIGKILL may strike, there are 0 or 1 live runs, and a record says so.

    made       the run directory exists, locked                   (mkdir is the lock: a repeated start is one start)
    claimed    process name, GPUs and ports are held              (Held or Taken: refused, nothing was started)
    listening  FIFO, control socket, reserved space for records
    forked     the child exists and waits at a pipe; if its keeper dies now it reads end-of-file and ends
    recorded   run.json is on disk                                (from here on an heir knows whom to look for)
    released   the child was told to go
    running    exec succeeded: the pipe that closes on exec closed

`reached` is called after each step; tests sabotage it to die there.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import time
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from . import claims, gpus, lending, ports, procfs, roster
from .rundir import Run, runs, subdirectories


class Refused(Exception):
    """This start cannot be: the message says why, `cause` is a word a program can branch on."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class Held(NamedTuple):
    """What a run holds on this host; keeper and pump both have it, the child has none of it."""

    claims: List[socket.socket]
    listener: socket.socket
    ports: Dict[str, int]
    gpus: List[lending.Lent]


class Child(NamedTuple):
    pid: int
    start: int
    go: int  # write end: one byte releases it, closing it ends it
    status: int  # read end: end-of-file = exec succeeded, else why not


def reached(step: str) -> None:
    """A crash point."""


def holder(run: Run, spec: Dict[str, Any]) -> Dict[str, Any]:
    """What a visitor of one of this run's claims is told."""
    about = spec.get("about", {})
    return {
        "deployment": run.deployment,
        "process": run.process,
        "run": run.run,
        "user": procfs.describe(os.getpid()).rpartition("user ")[2].rstrip(")"),
        "controller": about.get("controller"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def claim_names(run: Run, lent: List[lending.Lent], numbers: Iterable[int]) -> List[str]:
    """What a run must hold: its process's name (never two live runs of one process), its GPUs, its ports."""
    name = "run-%d-%s-%s" % (os.getuid(), run.deployment, run.process)
    return [name, *(gpus.claim_name(one.uuid) for one in lent), *("port-%d" % port for port in numbers)]


def claim(run: Run, spec: Dict[str, Any]) -> Held:
    """Claims, GPUs, ports and the control socket of a run, or Refused with nothing held."""
    held: List[socket.socket] = []

    def hold(name: str) -> None:
        held.append(claims.hold(name))

    try:
        for path in spec.get("needs", []):
            if not os.path.exists(path):
                raise Refused("missing", "%s does not exist on this host" % path)
        for name in claim_names(run, [], ()):
            hold(name)
        wanted = spec.get("gpus", [])
        lent = lending.take(wanted, float(spec.get("gpu_free", 0.0)), hold) if wanted else []
        _not_outlived(run, claim_names(run, lent, ()))
        low, high = spec.get("port_range", [18000, 19999])
        numbers, port_claims = ports.choose(spec.get("ports", {}), low, high)
        held += port_claims
        return Held(held, listen(run), numbers, lent)
    except (Refused, claims.Held, lending.Unfit, ports.Taken) as error:
        for sock in held:
            sock.close()
        raise Refused(getattr(error, "cause", "held"), str(error)) from None


def _not_outlived(run: Run, names: List[str]) -> None:
    """Claims fall with keeper and pump, which a tree may outlive: until its heir holds them, its records speak for it.

    Asked while we hold the claims ourselves, so nobody can become the holder meanwhile.
    """
    for deployment in subdirectories(os.path.join(run.base, "runs")):
        for other in runs(run.base, deployment):
            record = None if other.finished or other.path == run.path else other.record("run.json")
            if record is None or procfs.elsewhere(record):
                continue
            shared = set(names) & set(claim_names(other, lending.recorded(record), ()))
            if shared and roster.follower(other, record).members():
                raise Refused("held", "%s is held by run %s, whose keeper died" % (min(shared), other.run))


def listen(run: Run) -> socket.socket:
    """The run's control socket, in place of whatever a dead keeper left there."""
    os.makedirs(os.path.dirname(run.socket), mode=0o700, exist_ok=True)
    if os.path.exists(run.socket):
        os.unlink(run.socket)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(run.socket)
    os.chmod(run.socket, 0o600)
    listener.listen(16)
    listener.setblocking(False)
    return listener


def fill(text: str, numbers: Dict[str, int]) -> str:
    """Put the chosen ports into `${port.NAME}`."""
    for name, number in numbers.items():
        text = text.replace("${port.%s}" % name, str(number))
    return text


def executable(word: str, path: str) -> str:
    """The file that execs as `word`; Refused tells where it was looked for."""
    if "/" in word:
        return word
    for folder in path.split(":"):
        candidate = os.path.join(folder, word)
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    raise Refused("missing", "cannot find %s; looked in %s" % (word, path or "an empty PATH"))


def fork_child(run: Run, spec: Dict[str, Any], env: Dict[str, str], numbers: Dict[str, int]) -> Child:
    """Fork the leader, in a session of its own, waiting for the word. Its output goes to the run's FIFO."""
    argv = [fill(word, numbers) for word in spec["argv"]]
    env = {key: fill(value, numbers) for key, value in env.items()}
    program = executable(argv[0], env.get("PATH", ""))
    folder = os.path.join(run.base, "data", run.deployment, run.process)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    go_read, go_write = os.pipe()
    status_read, status_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become_leader(run, folder, go_read, status_write)
            os.close(go_write)
            if os.read(go_read, 1) != b"g":
                os._exit(0)  # our keeper died before it could vouch for us
            close_all_but({0, 1, 2, status_write})
            os.execve(program, argv, env)
        except BaseException as error:  # the status pipe is the only way to say anything from here
            os.write(status_write, ("cannot execute %s: %s" % (program, error)).encode()[:4000])
        finally:
            os._exit(127)
    os.close(go_read)
    os.close(status_write)
    born = procfs.read(pid)
    return Child(pid, born.start if born else 0, go_write, status_read)


def _become_leader(run: Run, folder: str, go_read: int, status_write: int) -> None:
    os.setsid()
    os.close(_only(os.open("/dev/null", os.O_RDONLY), 0))
    out = os.open(run.file("out"), os.O_RDWR)  # read-write: there is always a reader, so never a SIGPIPE
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(folder)
    os.set_inheritable(go_read, False)
    os.set_inheritable(status_write, False)
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            continue  # KILL, STOP and the C library's own
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    oom_score(_child_oom_score())


def _only(fd: int, number: int) -> int:
    os.dup2(fd, number)
    return fd


def close_all_but(kept: "set[int]") -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor of the listing itself


def detach(kept: "set[int]") -> None:
    """Let go of everything our parent had open but `kept`; 0, 1 and 2 become /dev/null."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    close_all_but(kept | {0, 1, 2})


def oom_score(score: int) -> None:
    """Whom the kernel kills first. Lowering needs root; a refusal is no reason not to run."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(score))
    except OSError:
        pass


def _child_oom_score() -> int:
    """The kernel ends the child before its keeper: as anybody where the keeper is protected, else by being worse."""
    with open("/proc/self/oom_score_adj") as file:
        keepers = int(file.read())
    return 0 if keepers < 0 else min(1000, keepers + 200)


def release(child: Child) -> Optional[str]:
    """Let the child exec; None when it did, else why it could not. Blocks for the length of an execve."""
    try:
        os.write(child.go, b"g")
    except BrokenPipeError:
        pass  # it ended before the word; its status pipe says why
    os.close(child.go)
    reached("released")
    why = os.read(child.status, 4096)
    os.close(child.status)
    return why.decode(errors="replace") or None


def abandon(child: Child) -> None:
    """End a child that we cannot vouch for. It is ours and not reaped, so its pid is nobody else's."""
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)


def make_fifo(run: Run) -> None:
    os.mkfifo(run.file("out"), 0o600)


def share_lock(base: str) -> int:
    """systemd-tmpfiles leaves alone what is flocked: hold the base directory for as long as this process lives."""
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd
