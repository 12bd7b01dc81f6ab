"""`noray` as processes of their own, without a second of imports each: it imports all of noray once, and forks.

python stable.py      in: {"argv", "env", "log", "delay_s"} -> its pid; {"exit": pid} -> its exit code, when it has ended
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from supervisor.cli import main
from supervisor.transport import bundle


def run(asked: dict) -> None:
    """The rest of a forked child's life."""
    code = 70
    try:
        os.setsid()
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open("/dev/null", os.O_RDONLY)
        for fd, number in ((null, 0), (log, 1), (log, 2)):
            os.dup2(fd, number)
        os.environ.update(asked["env"])
        time.sleep(asked["delay_s"])
        code = main(asked["argv"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    bundle.build()  # kept by its cache, so that every child has it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children = set()
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        if "exit" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["exit"], 0)[1])
            children.discard(asked["exit"])
        else:
            answer = os.fork()
            if answer == 0:
                run(asked)
            children.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve()
