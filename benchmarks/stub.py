"""Stands for etcd, a frontend and its workers in as little memory as Python allows; answers what is asked to see them ready.

    stub.py FOLDER etcd|frontend|worker [ARGUMENTS OF THE REAL ONE…]

They know each other by files in FOLDER: ID, of an instance, holds its address; ID.done has a byte for each completion that was
routed to it. The frontend routes round-robin and ignores whom a request names, as Dynamo's does.
"""

import os
import socket
import sys

MODEL = "w"


def main() -> None:
    folder, role, *words = sys.argv[1:]
    env = os.environ

    def given(flag):
        return words[words.index(flag) + 1]

    if role == "etcd":
        serve(given("--listen-client-urls"), etcd)
    elif role == "frontend":
        serve(given("--http-host") + ":" + given("--http-port"), Frontend(folder))
    else:
        worker = Worker(folder, f"{env['DYN_TCP_RPC_HOST']}:{env['DYN_TCP_RPC_PORT']}")
        serve(f"{env['DYN_SYSTEM_HOST']}:{env['DYN_SYSTEM_PORT']}", worker)


def serve(url, answer):
    host, _, port = url.rpartition("/")[2].rpartition(":")
    listener = socket.create_server((host, int(port)), backlog=128)
    while True:
        conn = listener.accept()[0]
        conn.settimeout(5.0)
        try:
            body = answer(heard(conn).split(b" ", 2)[1].decode()).encode()
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except (OSError, IndexError):
            pass
        conn.close()


def heard(conn):
    """A whole request: a socket that is closed with something unread resets the answer."""
    data = b""
    while True:
        part = conn.recv(1 << 16)
        data += part
        head, found, body = data.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if not part or (found and len(body) >= int(length or 0)):
            return data


def told(value):
    """As JSON, without importing it: 400 of us."""
    return repr(value).replace("'", '"').replace(": ", ":").replace(", ", ",")


def etcd(path):
    return told({"health": "true", "reason": ""})


class Worker:
    def __init__(self, folder, rpc):
        self.id = int.from_bytes(os.urandom(7), "big")
        self.done = os.path.join(folder, f"{self.id}.done")
        for name, text in ((self.done, ""), (os.path.join(folder, str(self.id)), rpc)):
            with open(name, "w") as file:
                file.write(text)
        self.asked = 0

    def __call__(self, path):
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
        self.folder, self.known, self.turn = folder, {}, 0

    def __call__(self, path):
        if path == "/live":
            return told({"status": "live", "message": "Service is live"})
        there = os.listdir(self.folder)
        self.known = {name: entry for name, entry in self.known.items() if name in there}
        for name in there:
            if name.isdigit() and name not in self.known:
                with open(os.path.join(self.folder, name)) as file:
                    address = file.read()
                if address:
                    self.known[name] = self.entry(int(name), address)
        if path == "/health":
            return told({"status": "healthy", "instances": list(self.known.values())})
        if path == "/v1/models":
            return told({"object": "list", "data": [{"id": MODEL, "object": "model"}] if self.known else []})
        return self.completion()

    def entry(self, number, address):
        where = {"namespace": "b_w", "component": "backend", "endpoint": "generate", "instance_id": number}
        return {**where, "transport": {"tcp": f"{address}/{number:x}/generate"}, "device_type": "cpu"}

    def completion(self):
        self.turn += 1
        chosen = list(self.known)[self.turn % len(self.known)]
        with open(os.path.join(self.folder, chosen + ".done"), "ab") as file:
            file.write(b".")
        routed = {"prefill_worker_id": int(chosen), "decode_worker_id": int(chosen)}
        return told({"choices": [{"text": "", "finish_reason": "length"}], "nvext": {"worker_id": routed}})


if __name__ == "__main__":
    main()
