"""Watch etcd's keys below a prefix; say when one goes: `etcd_watch.py URL PREFIX`, a line {"t": CLOCK_MONOTONIC, "key"} each.

A process of its own, of the standard library, so that nothing of noray is between etcd's word and the clock.
"""

from __future__ import annotations

import base64
import json
import sys
import time
import urllib.request


def main(url: str, prefix: str) -> None:
    first = prefix.encode()
    after = first[:-1] + bytes((first[-1] + 1,))
    asked = {"key": base64.b64encode(first).decode(), "range_end": base64.b64encode(after).decode()}
    body = json.dumps({"create_request": asked}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v3/watch", body), timeout=600) as answer:
        for line in answer:
            heard = time.monotonic()
            told = json.loads(line).get("result", {})
            if told.get("created"):
                print(json.dumps({"t": heard, "key": ""}), flush=True)
            for event in told.get("events", []):
                if event.get("type") == "DELETE":
                    print(json.dumps({"t": heard, "key": base64.b64decode(event["kv"]["key"]).decode()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
