"""osstorchconnector in a process of its own: it prints, and on a bad reply it aborts."""

from __future__ import annotations

import hashlib
import json
import sys
from types import SimpleNamespace
from typing import Any


def main() -> None:
    """What the connector finds through each endpoint of the JSON on stdin."""
    task: dict[str, Any] = json.load(sys.stdin)
    found = {kind: found_through(endpoint, task) for kind, endpoint in task["endpoints"].items()}
    with open(task["out"], "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(found, file)


def found_through(endpoint: str, task: dict[str, Any]) -> dict[str, Any]:
    """Keys and digests below a prefix, read in each way; and an object that was written and read back."""
    from osstorchconnector import OssCheckpoint, OssIterableDataset, OssMapDataset

    keys = SimpleNamespace(access_key_id=task["id"], access_key_secret=task["secret"], security_token=task["token"])
    provider = SimpleNamespace(get_credentials=lambda: keys)
    common = {"cred_provider": provider, "config_path": task["config"], "region": task["region"]}
    read = {**common, "transform": lambda found: (found.key, hashlib.sha256(found.read()).hexdigest())}
    prefix, uris = task["prefix"], task["uris"]
    listed = OssMapDataset.from_prefix(prefix, endpoint, **read)
    named = OssMapDataset.from_objects(uris, endpoint, **read)
    checkpoint = OssCheckpoint(endpoint, **common)
    with checkpoint.writer(task["written"]) as writer:
        writer.write(endpoint.encode())
    with checkpoint.reader(task["written"]) as reader:
        read_back = reader.read().decode()
    return {
        "iterated": sorted(OssIterableDataset.from_prefix(prefix, endpoint, **read)),
        "by number": sorted(listed[number] for number in range(len(listed))),
        "by name": [named[number] for number in range(len(named))],
        "read back": read_back,
    }


if __name__ == "__main__":
    main()
