"""Every verb with its flags. The text of --help is here; what a verb does is in the file of its name."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_FILE = Path("deployment.yaml")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="noray",
        description="NVIDIA Dynamo and its workers as plain process trees, over SSH.",
        epilog="NORAY_INVENTORY: default of -i. NORAY_STATE: where state is kept. NORAY_SOCKET: the controller's socket.",
    )
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)

    verb = _add(verbs, "demo", "show it on this machine: no configuration, GPU or network needed")
    verb.add_argument("--keep", action="store_true", help="leave the demo's directory for a look")

    verb = _add(verbs, "init", "write a first hosts.yaml and deployment.yaml, from ssh_config and what its hosts answer")
    verb.add_argument("directory", nargs="?", type=Path, default=Path(), metavar="DIR", help="default: this one")
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--host", nargs="+", metavar="NAME", help="these hosts; default: every alias of ssh_config")
    which.add_argument("--local", action="store_true", help="this machine only")
    verb.add_argument("--python", metavar="PATH", help="of the Dynamo environment on the hosts")
    verb.add_argument("--force", action="store_true", help="overwrite the files if they are there")

    verb = _add(verbs, "up", "start what the file says, or change what runs into it; follow until Ctrl-C")
    _files(verb)
    verb.add_argument("--detach", action="store_true", help="return when everything is ready")
    verb.add_argument("--yes", "-y", action="store_true", help="do not ask before changing what runs")
    _take_over(verb)

    verb = _add(verbs, "plan", "show what `up` would run, and how that differs from what runs")
    _files(verb)
    verb.add_argument(
        "-v", "--verbose", action="store_true", help="with arguments and environment, secrets masked (asks the hosts)"
    )
    _json(verb)

    verb = _add(verbs, "status", "the verdict, and what is not ready")
    _deployment(verb)
    verb.add_argument("-a", "--all", action="store_true", help="every process and host")
    verb.add_argument("--check", action="store_true", help="exit 0 if ready, 1 if degraded, 4 if unknown")
    _json(verb)

    verb = _add(verbs, "why", "what is wrong, the earliest cause first, and what to type next")
    verb.add_argument("name", nargs="?", help="a process, service, model or host")
    _deployment(verb)
    _json(verb)

    verb = _add(verbs, "logs", "what processes wrote")
    verb.add_argument("names", nargs="+", metavar="NAME", help="processes or services")
    _deployment(verb)
    verb.add_argument("-f", "--follow", action="store_true", help="go on, over restarts, until Ctrl-C (which touches nothing)")
    verb.add_argument(
        "-n", "--lines", type=int, metavar="N", help="the last N lines, of all together (default: 50; with --since: all)"
    )
    verb.add_argument("--since", metavar="WHEN", help="from then on, over restarts: 90s, 10m, 2h, 3d ago, or an ISO time")
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--previous", action="store_true", help="of the run before the last")
    which.add_argument("--first-failure", action="store_true", help="of the run with which the last series of failures began")
    which.add_argument("--run", dest="which_run", metavar="RUN", help="of this run")
    _json(verb)

    verb = _add(verbs, "events", "what happened, oldest first: starts, exits and why, fences, stops, orders, lost hosts")
    verb.add_argument("names", nargs="*", metavar="NAME", help="of these processes, services, hosts or runs (default: all)")
    _deployment(verb)
    verb.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C (which touches nothing)")
    verb.add_argument("-n", "--lines", type=int, metavar="N", help="the last N (default: 50; with --since: all)")
    verb.add_argument("--since", metavar="WHEN", help="from then on: 90s, 10m, 2h, 3d ago, or an ISO time")
    _json(verb)

    verb = _add(verbs, "hosts", "every host of the inventory: reachable or why not, what it is, who has its GPUs")
    verb.add_argument("hosts", nargs="*", metavar="HOST", help="these only")
    _known_inventory(verb)
    _deployment(verb)
    verb.add_argument("-v", "--verbose", action="store_true", help="with the ssh settings in force, and where each comes from")
    verb.add_argument("--trust", action="store_true", help="show new host keys once, and pin them in the site's known_hosts")
    verb.add_argument("--yes", "-y", action="store_true", help="with --trust: do not ask")
    _json(verb)

    verb = _add(verbs, "doctor", "who holds the GPUs of every host; can end what is ours and has nobody")
    verb.add_argument(
        "what", choices=["gpu"], help="gpu: every holder of every GPU: ours and of which run, furniture, stranger"
    )
    verb.add_argument(
        "--reap-ours",
        action="store_true",
        help="end the processes of our own runs that have neither keeper nor pump, and nobody else's",
    )
    _deployment(verb)
    verb.add_argument("--yes", "-y", action="store_true", help="do not ask")
    _json(verb)

    verb = _add(verbs, "down", "drain and stop everything, in order; works without a controller")
    _deployment(verb)
    verb.add_argument("--purge", action="store_true", help="remove logs and data too")
    verb.add_argument("--yes", "-y", action="store_true", help="do not ask")
    _json(verb)

    verb = _add(verbs, "eject", "remove every trace of noray from hosts where nothing of it runs any more, of any user")
    verb.add_argument("hosts", nargs="*", metavar="HOST", help="hosts of the inventory")
    verb.add_argument("--all", action="store_true", help="every host of the inventory")
    _known_inventory(verb)
    _deployment(verb)
    verb.add_argument("--yes", "-y", action="store_true", help="do not ask")
    _json(verb)

    verb = _add(verbs, "stop", "drain and stop these, until `noray start`; works without a controller")
    _names(verb)
    verb.add_argument("--yes", "-y", action="store_true", help="do not ask")
    _json(verb)

    verb = _add(verbs, "drain", "drain and stop all that is on these hosts, until `noray start HOST`", file="stop")
    verb.add_argument("names", nargs="+", metavar="HOST", help="hosts of the deployment")
    _deployment(verb)
    verb.add_argument("--yes", "-y", action="store_true", help="do not ask")
    _json(verb)

    for name, text in (
        ("cordon", "let nothing new reach these, until `noray uncordon`: no requests, and on a host or GPU nobody placed anew"),
        ("uncordon", "let requests reach these again"),
    ):
        verb = _add(verbs, name, text, file="cordon")
        verb.set_defaults(on=name == "cordon")
        verb.add_argument("names", nargs="+", metavar="NAME", help="processes, services, hosts, or GPUs as HOST:INDEX")
        _deployment(verb)
        _json(verb)

    verb = _add(verbs, "start", "start what was stopped by hand or has failed, with a new restart budget")
    verb.set_defaults(anew=False)
    _names(verb)
    _json(verb)

    verb = _add(verbs, "restart", "drain, stop and start these again, one after the other", file="start")
    verb.set_defaults(anew=True)
    _names(verb)
    verb.add_argument("--at-once", action="store_true", help="all at the same time: sooner over, and nothing serves meanwhile")
    verb.add_argument("--yes", "-y", action="store_true", help="do not ask")
    _json(verb)

    verb = _add(verbs, "scale", "more replicas of a service, or fewer; the others are drained and stopped")
    verb.add_argument("replicas", nargs="+", metavar="SERVICE=N", help="models, or the frontend")
    _deployment(verb)
    verb.add_argument("--yes", "-y", action="store_true", help="do not ask")
    _json(verb)

    verb = _add(verbs, "schema", "the JSON schema of deployment.yaml and hosts.yaml, for editors")

    verb = _add(verbs, "serve", "be the controller, in the foreground (what `up` starts in the background)")
    _files(verb)
    _take_over(verb)

    _service(_add(verbs, "service", "let systemd run the controller, from boot on: write its unit, and say what to run next"))
    return top


def _service(verb: argparse.ArgumentParser) -> None:
    whats = verb.add_subparsers(title="what", metavar="WHAT", required=True, dest="what")
    text = "write the unit of a controller for these files, and explain it"
    what = whats.add_parser("install", help=text, description=text[0].upper() + text[1:] + ".")
    _files(what)
    what.add_argument("--yes", "-y", action="store_true", help="do not ask before another unit is overwritten")
    text = "stop the controller and remove its unit; what it started runs on"
    gone = whats.add_parser("remove", help=text, description=text[0].upper() + text[1:] + ".")
    _deployment(gone)
    gone.add_argument("--yes", "-y", action="store_true", help="do not ask")
    for each in (what, gone):
        each.add_argument("--user", action="store_true", help="of your own user manager; without it, of the machine, as root")


def _add(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, file: str = ""
) -> argparse.ArgumentParser:
    """`file`: of this folder, where the verb has not one of its own name."""
    verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(verb_file=file or name)
    return verb


def _files(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("file", nargs="?", type=Path, default=DEFAULT_FILE, metavar="FILE", help="default: ./deployment.yaml")
    verb.add_argument("-i", "--inventory", type=Path, help="hosts.yaml; without one, this machine is the only host")


def _known_inventory(verb: argparse.ArgumentParser) -> None:
    text = "hosts.yaml; without one, that of the known deployment, else this machine"
    verb.add_argument("-i", "--inventory", type=Path, help=text)


def _deployment(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-d", "--deployment", metavar="NAME", help="which deployment, where several are known")


def _names(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("names", nargs="+", metavar="NAME", help="processes, services or hosts")
    _deployment(verb)


def _take_over(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--take-over", action="store_true", help="be the controller even if another one, alive, is")


def _json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print data instead of text")
