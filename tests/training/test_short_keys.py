"""Keys that end while the connector reads and writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from ossconsole.config.connector import checked_connector_config
from ossconsole.config.credential_sources import EcsRoleSource
from ossconsole.config.metadata import METADATA_VARIABLE
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
    assert failed(tmp_path / "sandbox") == []


def failed(folder: Path) -> list[str]:
    """The requests in the sandbox's log that failed, without those for what may not exist yet."""
    lines = (folder / LOG_NAME).read_text().splitlines()
    entries = [(line, json.loads(line)) for line in lines]
    return [
        line
        for line, entry in entries
        if entry["status"] >= 400 and (entry["method"], entry["status"]) != ("HEAD", 404)
    ]


MINUTES = 3.0


def photographs(folder: Path) -> Path:
    for split, count in (("train", 40), ("val", 5)):
        for label in "ab":
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 255, (80, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.jpg")
    return folder


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_training_and_uploads_for_three_minutes_on_keys_of_30_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The console's own commands: two readers, checkpoints, endpoint switches, and uploads without a pause beside."""
    folder = photographs(tmp_path / "photographs")
    with sandboxed(tmp_path / "sandbox", arguments=("--metadata-credential-ttl-s", "30")) as running:
        monkeypatch.setenv(METADATA_VARIABLE, running.process.info.metadata_endpoint or "")
        monkeypatch.setenv("COLUMNS", "200")
        profile = running.process.profile()
        where = ["--bucket", profile.bucket, "--region", profile.region]
        where += ["--standard-endpoint", profile.standard_endpoint]
        where += ["--accelerated-endpoint", str(profile.accelerated_endpoint)]
        console = [sys.executable, "-m", "ossconsole"]

        def upload(prefix: str) -> None:
            options = ["--format", "image-jpeg", "--size", "64", "--dataset-prefix", prefix, "--json"]
            command = [*console, "upload", str(folder), *options, *where]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr
            assert json.loads(done.stdout.splitlines()[-1])["failed"] == 0

        upload("keys/data")
        options = ["--epochs", "100000", "--batch-size", "8", "--workers", "2", "--image-size", "32", "--json"]
        options += ["--switch-every", "40", "--checkpoint-every", "50", "--dataset-prefix", "keys/data"]
        with (tmp_path / "train.log").open("w+") as output:
            training = subprocess.Popen(
                [*console, "train", *options, "--checkpoint-prefix", "keys/checkpoints", *where],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ,
            )
            try:
                until, number = time.monotonic() + 60 * MINUTES, 0
                while time.monotonic() < until:
                    upload(f"keys/again/{number}")
                    number += 1
                    assert training.poll() is None, (tmp_path / "train.log").read_text()[-3000:]
            finally:
                training.send_signal(signal.SIGINT)
                code = training.wait(timeout=180)
        events = [json.loads(line) for line in (tmp_path / "train.log").read_text().splitlines() if line[:1] == "{"]
        assert code == 130, events[-1]
        assert max(event.get("step", 0) for event in events) > 0
        assert list(running.store().list_all("keys/checkpoints"))
    assert failed(tmp_path / "sandbox") == []
