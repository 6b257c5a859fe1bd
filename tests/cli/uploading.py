"""`ossconsole upload` in a process of its own, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from ossconsole.config.profiles import Profile
from ossconsole.storage.client import ObjectStore
from tests.sandboxed import Sandboxed

TIMEOUT_S = 60


@dataclass(frozen=True)
class Uploader:
    """The command on one dataset prefix of a running sandbox."""

    sandboxed: Sandboxed
    profile: Profile
    store: ObjectStore

    def start(self, *arguments: str, size: str = "16", **environment: str) -> subprocess.Popen[str]:
        """With `--size SIZE`, unless that is ""."""
        owner = self.sandboxed.owner()
        keys = {"OSS_ACCESS_KEY_ID": owner.access_key_id, "OSS_ACCESS_KEY_SECRET": owner.access_key_secret.reveal()}
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "ossconsole", "upload", "--workers", "1"),
                *(("--size", size) if size else ()),
                *("--bucket", self.profile.bucket, "--region", self.profile.region),
                *("--dataset-prefix", self.profile.dataset_prefix),
                *("--standard-endpoint", self.profile.standard_endpoint),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **keys, **environment},
        )

    def run(self, *arguments: str, size: str = "16", **environment: str) -> Done:
        return finish(self.start(*arguments, size=size, **environment))

    def objects(self) -> int:
        """How many are below the prefix."""
        return sum(1 for _ in self.store.list_all(f"{self.profile.dataset_prefix}/"))


@dataclass(frozen=True)
class Done:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        return self.lines[-1]


def finish(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate(timeout=TIMEOUT_S)
    return Done(process.returncode, out, err)
