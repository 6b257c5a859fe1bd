"""A running sandbox with keys that may do less than its owner's, for tests of any layer; and its log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fastcrc
import msgspec
import pytest

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, object_key, write_manifest
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.faults import FaultPlan
from ossconsole.sandbox.keys import AccessKey, KeyRing, Role
from ossconsole.sandbox.process import SandboxInfo, SandboxProcess
from ossconsole.sandbox.response import RequestRecord
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.retry import NO_RETRY


@dataclass(frozen=True)
class Sandboxed:
    """`keys` by what they may do; `expired` is a temporary one whose end has passed."""

    process: SandboxProcess
    keys: dict[str, FixedSource]

    @property
    def owner(self) -> FixedSource:
        return FixedSource(self.process.credentials())

    @property
    def wrong_secret(self) -> FixedSource:
        return FixedSource(Credentials(self.process.info.access_key_id, Secret("wrong")))

    def profile(self, folder: str) -> Profile:
        """The sandbox's profile with prefixes of the test's own."""
        return msgspec.structs.replace(
            self.process.profile(), dataset_prefix=f"{folder}/data", checkpoint_prefix=f"{folder}/checkpoints"
        )

    @property
    def control(self) -> SandboxControl:
        return SandboxControl(self.process.info)

    @contextmanager
    def faults(self, plan: FaultPlan) -> Iterator[None]:
        """The server misbehaves for the time of the block."""
        self.control.set_faults(plan)
        try:
            yield
        finally:
            self.control.clear_faults()

    def store(self, kind: EndpointKind = EndpointKind.STANDARD, key: str = "") -> ObjectStore:
        credentials = self.keys[key] if key else self.owner
        return ObjectStore(self.process.profile(), credentials, kind, timeout_s=5.0, retry=NO_RETRY)


@contextmanager
def sandboxed(folder: Path, *, unshaped: bool = True, arguments: tuple[str, ...] = ()) -> Iterator[Sandboxed]:
    """Starts one in `folder` and stops it again."""
    folder.mkdir(parents=True, exist_ok=True)
    ring = KeyRing.load(folder / "keys.json")
    issued = {role.value: ring.issue(role) for role in Role}
    issued["expired"] = ring.issue(Role.OWNER, expires_at=time.time() - 60)
    issued["temporary"] = ring.issue(Role.OWNER, expires_at=time.time() + 3600)
    with SandboxProcess.start(folder, unshaped=unshaped, arguments=("--metadata", "v2", *arguments)) as process:
        yield Sandboxed(process, {name: _source(key) for name, key in issued.items()})


def _source(key: AccessKey) -> FixedSource:
    return FixedSource(Credentials(key.id, key.secret, key.token))


def set_keys(monkeypatch: pytest.MonkeyPatch, pair: Credentials | SandboxInfo) -> None:
    """Sets the key pair as the environment's."""
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", pair.access_key_id)
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", pair.access_key_secret.reveal())


def small_dataset(bucket: Sandboxed, name: str, *, samples: int, side: int) -> Profile:
    """A dataset of black images of two classes in the bucket, and the profile that leads to it."""
    profile, store = bucket.profile(name), bucket.store()
    body = bytes(3 * side * side)
    listed = tuple(Sample(f"train/c{n % 2}/{n}.u8", n % 2, side, side, fastcrc.crc64.xz(body)) for n in range(samples))
    for sample in listed:
        store.put(object_key(profile.dataset_prefix, sample.key), body)
    manifest = Manifest(format=SampleFormat.IMAGE_U8, size=side, classes=("c0", "c1"), splits={"train": listed})
    write_manifest(store, profile.dataset_prefix, manifest)
    store.close()
    return profile


def read_log(path: Path) -> Iterator[RequestRecord]:
    """The records of a log, oldest first; other lines (the process's stderr) are skipped."""
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b"{") and line.endswith(b"}\n"):
                yield msgspec.json.decode(line, type=RequestRecord)
