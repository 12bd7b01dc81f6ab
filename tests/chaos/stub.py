"""Stands for etcd, a frontend or a worker, over several hosts that share a folder.

    stub.py FOLDER etcd|frontend|worker [ARGUMENTS OF THE REAL ONE…]          (Python >= 3.9, -I -S)

What is registered is a file of FOLDER named by the instance, locked by its worker: it goes with the worker, as if leases had no
term. `ID.cordoned` hides it, `ID.done` has a byte for each completion.

A worker has a child, which does nothing. They die as engines do: a worker without its child gives up, a child without its
worker stays.
"""

import fcntl
import os
import select
import signal
import socket
import sys
import time

MODEL = "w"
COMPONENT = ("backend", "generate")


def main() -> None:
    folder, role, *words = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    def given(flag):
        return words[words.index(flag) + 1]

    if role == "etcd":
        serve([listen(given("--listen-client-urls"))], etcd(folder))
    elif role == "frontend":
        serve([listen(given("--http-host") + ":" + given("--http-port"))], Frontend(folder))
    else:
        child = os.fork()
        if not child:
            while True:
                time.sleep(3600)
        env = os.environ
        rpc = env["DYN_TCP_RPC_HOST"] + ":" + env["DYN_TCP_RPC_PORT"]
        doors = [listen(env["DYN_SYSTEM_HOST"] + ":" + env["DYN_SYSTEM_PORT"]), listen(rpc)]
        worker = Worker(folder, env["DYN_NAMESPACE"], rpc)
        serve(doors, worker, child)


def listen(url):
    host, _, port = url.rpartition("/")[2].rpartition(":")
    return socket.create_server((host, int(port)), backlog=128)


def serve(doors, answer, child=0):
    beat = time.monotonic() + 1.0
    while True:
        for door in select.select(doors, [], [], 0.2)[0]:
            conn = door.accept()[0]
            if door is not doors[0]:
                conn.close()  # the request plane: that it can be dialled is all that is asked
                continue
            conn.settimeout(5.0)
            try:
                path, body = heard(conn)
                told = answer(path, body).encode()
                conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(told), told))
            except (OSError, IndexError, ValueError):
                pass
            conn.close()
        if child and os.waitpid(child, os.WNOHANG)[0]:
            print("my child is dead", flush=True)
            os._exit(3)
        if time.monotonic() > beat:
            beat += 1.0
            print("beat", flush=True)


def heard(conn):
    """Path and body of a whole request: a socket that is closed with something unread resets the answer."""
    data = b""
    while True:
        part = conn.recv(1 << 16)
        data += part
        head, found, body = data.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if not part or (found and len(body) >= int(length or 0)):
            return head.split(b" ", 2)[1].decode(), body


def told(value):
    """As JSON, without importing it."""
    return repr(value).replace("'", '"').replace(": ", ":").replace(", ", ",")


def registered(folder):
    """Instance -> namespace and address, of all whose worker lives."""
    found = {}
    for entry in os.listdir(folder):
        if not entry.isdigit():
            continue
        try:
            with open(os.path.join(folder, entry)) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    found[int(entry)] = file.read().split()
                    continue
            os.unlink(os.path.join(folder, entry))
        except OSError:
            continue  # somebody else was quicker
    return {number: words for number, words in found.items() if len(words) == 2}


def entry(number, namespace, address):
    where = {"namespace": namespace, "component": COMPONENT[0], "endpoint": COMPONENT[1], "instance_id": number}
    return {**where, "transport": {"tcp": f"{address}/{number:x}/generate"}, "device_type": "cpu"}


def etcd(folder):
    """The gateway of etcd, as far as fences, cordons and looks at the registry need it."""
    import base64
    import json

    def key_of(number, namespace):
        return f"v1/instances/{namespace}/{COMPONENT[0]}/{COMPONENT[1]}/{number:x}"

    def card_of(number, namespace):
        return f"v1/mdc/{namespace}/{COMPONENT[0]}/{COMPONENT[1]}/{number:x}"

    def answer(path, body):
        if path == "/health":
            return told({"health": "true", "reason": ""})
        asked = json.loads(body or b"{}")
        known = registered(folder)
        shown = {key_of(n, w[0]): n for n, w in known.items() if not os.path.exists(os.path.join(folder, f"{n}.cordoned"))}
        if path == "/v3/lease/revoke":
            forget(folder, int(asked["ID"]))
            return json.dumps({"header": {}})
        first = base64.b64decode(asked.get("key", "")).decode()
        end = base64.b64decode(asked.get("range_end", "")).decode()
        hit = [key for key in sorted(shown) if (first <= key < end if end else key == first)]
        if path == "/v3/kv/put":
            again = [n for n, words in known.items() if key_of(n, words[0]) == first]
            for number in again:
                if os.path.exists(mark := os.path.join(folder, f"{number}.cordoned")):
                    os.unlink(mark)
            return json.dumps({"header": {}})
        if path == "/v3/kv/deleterange":
            for key in hit:
                open(os.path.join(folder, f"{shown[key]}.cordoned"), "w").close()
            return json.dumps({"header": {}, "deleted": str(len(hit))})
        kvs = [{"key": coded(key), "value": coded(told(entry(shown[key], *known[shown[key]]))), "lease": str(shown[key])}
               for key in hit]  # fmt: skip
        kvs += [{"key": coded(card)} for n, w in known.items() if end and first <= (card := card_of(n, w[0])) < end]
        return json.dumps({"header": {}, "kvs": kvs, "count": str(len(kvs))})

    def coded(text):
        return base64.b64encode(text.encode()).decode()

    return answer


def forget(folder, number):
    try:
        os.unlink(os.path.join(folder, str(number)))
    except FileNotFoundError:
        pass


class Worker:
    def __init__(self, folder, namespace, rpc):
        self.id = int.from_bytes(os.urandom(7), "big")
        self.done = os.path.join(folder, f"{self.id}.done")
        open(self.done, "w").close()
        draft = os.path.join(folder, f".{self.id}")
        self.file = open(draft, "w")  # noqa: SIM115 - held for as long as we live; our child has none of it
        self.file.write(f"{namespace} {rpc}")
        self.file.flush()
        fcntl.flock(self.file, fcntl.LOCK_EX)
        os.rename(draft, os.path.join(folder, str(self.id)))
        self.asked = 0

    def __call__(self, path, body):
        self.asked += 1
        if path == "/health":  # with an uptime that always moves, as Dynamo's
            uptime = {"secs": self.asked, "nanos": self.asked}
            return told({"status": "ready", "uptime": uptime, "endpoints": {"generate": "ready"}})
        labels = f'{{dynamo_component="backend",dynamo_endpoint="generate",worker_id="{self.id:x}"}}'
        done = os.path.getsize(self.done)
        counts = {"requests_total": done, "request_duration_seconds_count": done, "inflight_requests": 0}
        return "".join(f"dynamo_component_{name}{labels} {count}\n" for name, count in counts.items())


class Frontend:
    def __init__(self, folder):
        self.folder, self.turn = folder, 0

    def __call__(self, path, body):
        if path == "/live":
            return told({"status": "live", "message": "Service is live"})
        known = registered(self.folder)
        known = {n: words for n, words in known.items() if not os.path.exists(os.path.join(self.folder, f"{n}.cordoned"))}
        if path == "/health":
            return told({"status": "healthy", "instances": [entry(number, *words) for number, words in known.items()]})
        if path == "/v1/models":
            return told({"object": "list", "data": [{"id": MODEL, "object": "model"}] if known else []})
        self.turn += 1
        chosen = sorted(known)[self.turn % len(known)] if known else None
        if chosen is None:
            return told({"error": "nobody"})
        with open(os.path.join(self.folder, f"{chosen}.done"), "ab") as file:
            file.write(b".")
        routed = {"prefill_worker_id": chosen, "decode_worker_id": chosen}
        return told({"choices": [{"text": "", "finish_reason": "length"}], "nvext": {"worker_id": routed}})


if __name__ == "__main__":
    main()
