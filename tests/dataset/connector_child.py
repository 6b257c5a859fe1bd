"""osstorchconnector in a process of its own: it prints, and on a bad reply it aborts."""

from __future__ import annotations

import hashlib
import json
import sys
from types import SimpleNamespace
from typing import Any


def main() -> None:
    """Does what JSON on stdin asks for: writes the index of a local tar, and tells the members of one in the bucket."""
    task: dict[str, Any] = json.load(sys.stdin)
    from osstorchconnector import OssIterableDataset, OssMapDataset, generate_tar_archive

    keys = SimpleNamespace(access_key_id=task["id"], access_key_secret=task["secret"], security_token="")
    provider = SimpleNamespace(get_credentials=lambda: keys)
    common = {"cred_provider": provider, "config_path": task["config"], "region": task["region"]}
    local = {"tar_path": task["local_tar"], "index_path": task["local_index"], "source_path": "", "index_only": True}
    if generate_tar_archive(task["endpoint"], "", **local, **common) != 0:
        sys.exit("no index")
    common |= {"transform": lambda member: (member.key, hashlib.sha256(member.read()).hexdigest())}
    where = (task["tar"], task["index"], task["endpoint"])
    numbered = OssMapDataset.from_tar(*where, **common)
    found = {
        "in passing": list(OssIterableDataset.from_tar(*where, **common)),
        "by number": [numbered[number] for number in range(len(numbered))],
    }
    with open(task["out"], "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(found, file)


if __name__ == "__main__":
    main()
