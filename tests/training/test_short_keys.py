"""Keys that end while the connector reads and writes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.connector import checked_connector_config
from ossconsole.config.credential_sources import EcsRoleSource
from ossconsole.sandbox.process import LOG_NAME
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.retry import NO_RETRY
from tests.sandboxed import sandboxed

LIFE_S = 6
SECONDS = 20.0

READING = """
import sys, time
from pathlib import Path
import msgspec
from ossconsole.config.credential_sources import EcsRoleSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.profiles import Profile
from ossconsole.training.loading.connector import ConnectorSettings, native

profile = msgspec.json.decode(sys.argv[1], type=Profile)
settings = ConnectorSettings(profile, EcsRoleSource(url=sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
opened, until, done = settings.open(EndpointKind.STANDARD), time.monotonic() + float(sys.argv[5]), 0
while time.monotonic() < until:
    objects = [native().new_data_object(f"oss://{profile.bucket}/short/{number}", 1000, "") for number in range(20)]
    for obj in opened.list_from_uris(objects, True, True):
        assert obj.err() == 0, obj.error_msg()
        done += 1
    with opened.open_wo(profile.bucket, "short/checkpoint") as writer:
        writer.write(bytes(100_000))
    time.sleep(0.05)
# One upload that outlasts its key: the parts are sent as they fill.
with opened.open_wo(profile.bucket, "short/long") as writer:
    for _ in range(10):
        writer.write(bytes(16 << 20))
        time.sleep(1)
print("objects", done)
"""


@pytest.mark.timeout(180)
@pytest.mark.slow
def test_no_request_fails_while_keys_end_every_few_seconds(tmp_path: Path) -> None:
    """A reader and a checkpoint writer with the real connector, and an upload, longer than three keys live."""
    with sandboxed(tmp_path / "sandbox", arguments=("--metadata-credential-ttl-s", str(LIFE_S))) as running:
        url = running.process.info.metadata_endpoint
        assert url is not None
        profile = running.process.profile()
        source = EcsRoleSource(url=url)
        store = ObjectStore(profile, source, retry=NO_RETRY)
        for number in range(20):
            store.put(f"short/{number}", bytes(1000))
        reading = subprocess.Popen(
            [
                *(sys.executable, "-c", READING, msgspec.json.encode(profile).decode(), url),
                *(str(checked_connector_config()), str(tmp_path / "native.log"), str(SECONDS)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        sent, keys = 0, set()
        until = time.monotonic() + SECONDS
        pause = threading.Event()
        while time.monotonic() < until:
            store.put(f"sent/{sent}", b"x" * 1000)
            keys.add(source().access_key_id)
            sent += 1
            pause.wait(0.02)
        output, errors = reading.communicate(timeout=60)
        store.close()
        assert reading.returncode == 0, errors
        assert int(output.split()[-1]) > 0
        assert len(keys) >= 3
        log = (tmp_path / "sandbox" / LOG_NAME).read_text()
    refused = [line for line in log.splitlines() if msgspec.json.decode(line)["status"] in {401, 403}]
    assert refused == []
