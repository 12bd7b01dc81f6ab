"""How an etcd that is not ours is reached from one host: by Dynamo's own variables, which stand in the host's env_file.

Dynamo 1.4.2 takes user and password over http, or a client's certificate over https, never both: with a user it forgets the
certificates, without one of its three it trusts nobody (measured). Of the certificates it wants the text, not the path that its
documentation speaks of; here they are paths on the host, which gives each process what stands there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from supervisor.errors import FileError

AUTH = "ETCD_AUTH_"
USER, PASSWORD = "ETCD_AUTH_USERNAME", "ETCD_AUTH_PASSWORD"
FILES = {"ca": "ETCD_AUTH_CA", "cert": "ETCD_AUTH_CLIENT_CERT", "key": "ETCD_AUTH_CLIENT_KEY"}
EITHER = "Dynamo takes certificates over https, or user and password over http, never both"


def target(urls: Sequence[str], secrets: Mapping[str, str], host: str) -> Mapping[str, object]:
    """As `hostside/etcd.py` takes it; `secrets`: of the host's env_file. Raises FileError where Dynamo could not log in."""
    secure = urls[0].startswith("https:")
    by_file, by_word = tuple(FILES.values()), (USER, PASSWORD)
    wanted, other = (by_file, by_word) if secure else (by_word, by_file)
    missing = [name for name in wanted if not secrets.get(name)]
    mixed = [name for name in other if secrets.get(name)]
    file = f"the env_file of {host}"
    if mixed:
        raise FileError(f"discovery.endpoints: {mixed[0]} in {file}, and {urls[0]}", hint=EITHER)
    if missing and (secure or len(missing) < len(wanted)):
        raise FileError(f"discovery.endpoints: {urls[0]} needs {' and '.join(missing)}", hint=f"write it in {file}")
    if not secure:
        login = {} if missing else {"auth": {"user": secrets[USER], "password": secrets[PASSWORD]}}
        return {"urls": list(urls), **login}
    for name in by_file:
        if not secrets[name].startswith("/"):
            raise FileError(f"{name} in {file} is no absolute path", hint=f"of a PEM file on {host}")
    return {"urls": list(urls), "tls": {part: secrets[name] for part, name in FILES.items()}}
