"""osstorchconnector on the bucket: what it reads through each endpoint, and what it writes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ossconsole.storage.client import ObjectStore
from tests.contract.conftest import ContractTarget

_TIMEOUT_S = 120


def run_connector(target: ContractTarget, folder: Path, **task: Any) -> dict[str, Any]:
    """What the connector finds through each endpoint, in a process of its own."""
    config, out = folder / "connector.json", folder / "found.json"
    config.write_text(json.dumps({"logLevel": 1, "logPath": str(folder / "log"), "datasetConfig": {}}))
    keys = target.credentials()
    task |= {"id": keys.access_key_id, "secret": keys.access_key_secret.reveal()}
    task |= {"token": keys.security_token.reveal() if keys.security_token else ""}
    task |= {"endpoints": dict(target.profile.endpoints), "region": target.profile.region}
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.connector_child"],
        input=json.dumps({**task, "config": str(config), "out": str(out)}),
        text=True,
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_it_reads_and_writes_what_oss2_does(
    contract_target: ContractTarget, contract_store: ObjectStore, contract_prefix: str, tmp_path: Path
) -> None:
    objects = {f"{contract_prefix}data/{name}": name.encode() * 1000 for name in ("a.bin", "b c.bin", "ü+%.bin")}
    for key, data in objects.items():
        contract_store.put(key, data)
    bucket, written = f"oss://{contract_target.profile.bucket}/", f"{contract_prefix}written.pt"
    found = run_connector(
        contract_target,
        tmp_path,
        prefix=f"{bucket}{contract_prefix}data/",
        uris=[f"{bucket}{key}" for key in objects],
        written=f"{bucket}{written}",
    )
    expected = [[key, hashlib.sha256(data).hexdigest()] for key, data in objects.items()]
    for kind, endpoint in contract_target.profile.endpoints.items():
        through = found[kind]
        for ways in ("by name", "iterated", "by number"):
            # The connector puts the bucket before the key.
            keys = [[key[key.index(contract_prefix) :], digest] for key, digest in through[ways]]
            assert keys == (expected if ways == "by name" else sorted(expected)), (kind, ways)
        assert through["read back"] == endpoint
    assert contract_store.get(written).decode() == endpoint
