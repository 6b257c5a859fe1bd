"""osstorchconnector in a process of its own: it prints, and on a bad reply it aborts."""

from __future__ import annotations

import hashlib
import json
import sys
from types import SimpleNamespace
from typing import Any


def main() -> None:
    """Does the task given as JSON on stdin: writes an index, or tells each member's name and digest."""
    task: dict[str, Any] = json.load(sys.stdin)
    from osstorchconnector import OssIterableDataset, generate_tar_archive

    keys = SimpleNamespace(access_key_id=task["id"], access_key_secret=task["secret"], security_token="")
    provider = SimpleNamespace(get_credentials=lambda: keys)
    common = {"cred_provider": provider, "config_path": task["config"], "region": task["region"]}
    if task["do"] == "index":
        code = generate_tar_archive(
            task["endpoint"],
            "",
            tar_path=task["tar"],
            index_path=task["index"],
            source_path="",
            index_only=True,
            **common,
        )
        sys.exit(code)
    dataset = OssIterableDataset.from_tar(
        task["tar"],
        task["index"],
        task["endpoint"],
        transform=lambda member: (member.key, hashlib.sha256(member.read()).hexdigest()),
        **common,
    )
    with open(task["out"], "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(dict(dataset), file)


if __name__ == "__main__":
    main()
