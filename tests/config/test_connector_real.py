"""The connector itself takes the file that is written, with every key changed, and logs where the settings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ossconsole.config.connector import CONNECTOR_KEYS, ConnectorValues, save_connector_config
from tests.sandboxed import Sandboxed

_CODE = """
import sys
from osstorchconnector import OssMapDataset
endpoint, region, config, key_id = sys.argv[1:5]

class Provider:
    def get_credentials(self):
        return self
    access_key_id, access_key_secret, security_token = key_id, sys.stdin.read(), ""

found = OssMapDataset.from_prefix(
    "oss://127/connector/", endpoint=endpoint, region=region, cred_provider=Provider(), config_path=config
)
print(sorted((item.key.rpartition('/')[2], item.read()) for item in (found[index] for index in range(len(found)))))
"""


def test_every_key_is_taken(sandboxed_bucket: Sandboxed, tmp_path: Path) -> None:
    store = sandboxed_bucket.store()
    for name in ("a", "b"):
        store.put(f"connector/{name}", name.encode())
    values: ConnectorValues = {"logPath": str(tmp_path / "connector.log"), "auditPath": str(tmp_path / "audit.log")}
    for key in CONNECTOR_KEYS:
        if isinstance(key.default, bool):
            # Reading several objects in one request is an extension that the documentation leaves out.
            values[key.name] = key.name != "datasetConfig.enableBatchGet"
        elif isinstance(key.default, int):
            values[key.name] = min(key.high, key.default + 1)
    config = save_connector_config(values, tmp_path / "connector.json")
    info = sandboxed_bucket.process.info
    done = subprocess.run(
        [sys.executable, "-c", _CODE, info.endpoints["standard"], info.region, str(config), info.access_key_id],
        input=info.access_key_secret.reveal(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "[('a', b'a'), ('b', b'b')]" in done.stdout, done.stderr[-2000:]
    assert list(tmp_path.glob("connector.log*"))
