"""The real connector against the sandbox, unmodified, in a process of its own (it prints, and may abort)."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from ossconsole.sandbox.process import SandboxProcess
from ossconsole.sandbox.response import RequestRecord
from tests.sandboxed import read_log

SAMPLES = 60
CHECKPOINT_BYTES = 20_000_000

_SCRIPT = """
import hashlib, json, sys
from types import SimpleNamespace
from osstorchconnector import OssCheckpoint, OssMapDataset

task = json.loads(sys.stdin.read())

class Provider:
    def get_credentials(self):
        return SimpleNamespace(access_key_id=task["id"], access_key_secret=task["secret"], security_token="")

common = dict(region=task["region"], cred_provider=Provider(), config_path=task["config"])
result = {"samples": {}}
for kind, endpoint in task["endpoints"].items():
    dataset = OssMapDataset.from_prefix(
        "oss://127/" + task["prefix"], endpoint=endpoint,
        transform=lambda o: (o.key, hashlib.sha256(o.read()).hexdigest()), **common)
    result["samples"][kind] = [dict(dataset.__getitems__(list(range(len(dataset))))) for _ in range(2)]
checkpoint = OssCheckpoint(endpoint=task["endpoints"]["standard"], **common)
uri = "oss://127/" + task["checkpoint"]
data = bytes(range(256)) * (task["bytes"] // 256)
with checkpoint.writer(uri) as writer:
    writer.write(data)
with checkpoint.reader(uri) as reader:
    result["checkpoint"] = hashlib.sha256(reader.read()).hexdigest()
open(task["result"], "w").write(json.dumps(result))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sandbox: SandboxProcess) -> tuple[Any, list[RequestRecord]]:
    """What the connector read, and the requests it made."""
    import oss2

    from tests.sandbox.conftest import make_bucket

    folder = tmp_path_factory.mktemp("connector")
    prefix = "connector/a b+c/é/"
    bucket = make_bucket(sandbox.info)
    session = oss2.Session()
    bucket.session = session
    for number in range(SAMPLES):
        bucket.put_object(f"{prefix}{number:03d}.pt", str(number).encode() * 1000)
    config = folder / "config.json"
    config.write_text(json.dumps({"logLevel": 1, "logPath": str(folder / "connector.log")}))
    task = {
        "id": sandbox.info.access_key_id,
        "secret": sandbox.info.access_key_secret.reveal(),
        "region": sandbox.info.region,
        "endpoints": sandbox.info.endpoints,
        "prefix": prefix,
        # A key that begins with the bucket's name is where the two addressing styles could be taken for each other.
        "checkpoint": "127/checkpoint.pt",
        "bytes": CHECKPOINT_BYTES,
        "config": str(config),
        "result": str(folder / "result.json"),
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    records = [record for record in read_log(sandbox.log_path) if record.user_agent.startswith("OSSConnector")]
    return json.loads((folder / "result.json").read_text()), records


def test_samples_arrive_through_both_endpoints(run: tuple[Any, list[RequestRecord]]) -> None:
    expected = {
        f"/127/connector/a b+c/é/{number:03d}.pt": hashlib.sha256(str(number).encode() * 1000).hexdigest()
        for number in range(SAMPLES)
    }
    assert run[0]["samples"] == {"standard": [expected, expected], "accelerated": [expected, expected]}


def test_checkpoint_round_trip(run: tuple[Any, list[RequestRecord]], bucket: Any) -> None:
    data = bytes(range(256)) * (CHECKPOINT_BYTES // 256)
    assert run[0]["checkpoint"] == hashlib.sha256(data).hexdigest()
    assert bucket.get_object("127/checkpoint.pt").read() == data


def test_requests_were_the_connectors_and_none_was_refused(run: tuple[Any, list[RequestRecord]]) -> None:
    records = run[1]
    assert {record.status for record in records} <= {200, 204, 206}
    reads = Counter(record.endpoint for record in records if record.operation == "GetObject" and "é" in record.key)
    assert reads == {"standard": 2 * SAMPLES, "accelerated": 2 * SAMPLES}
    operations = {record.operation for record in records}
    assert {
        "ListObjects",
        "DeleteObject",
        "InitiateMultipartUpload",
        "UploadPart",
        "CompleteMultipartUpload",
    } <= operations
