"""UploadContext: what the engines of an upload share, and what they leave for its summary."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Protocol

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.profile import Profile
from ossconsole.dataset.flow import BandwidthCap, Gate
from ossconsole.dataset.journal import Failure
from ossconsole.dataset.layout import SkippedFile
from ossconsole.dataset.progress import Failed, Ignored
from ossconsole.dataset.scoreboard import Scoreboard
from ossconsole.dataset.settings import UploadSettings
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.retry import RetryPolicy, Wait

KEPT_NAMES = 1000
RETRIES = RetryPolicy(attempts=6)
"""Of each request of an upload: nobody may be there to start it again."""


@dataclass
class UploadContext:
    """`removed`, `pruned`, `unknown`, `manifest` and `ignored` become those of the summary."""

    profile: Profile
    credentials: CredentialSource
    settings: UploadSettings
    board: Scoreboard
    gate: Gate
    cap: BandwidthCap
    removed: list[str] = field(default_factory=list)
    pruned: bool = False
    unknown: int = 0
    manifest: str = ""
    ignored: list[Failure] = field(default_factory=list)

    @property
    def prefix(self) -> str:
        return self.profile.dataset_prefix

    @functools.cached_property
    def store(self) -> ObjectStore:
        """For any number of threads; its retries are on the board, and a cancel ends their waits."""
        return ObjectStore(self.profile, self.credentials, retry=RETRIES, pause=self._wait, pool_size=64)

    def _wait(self, wait: Wait) -> None:
        self.board.retried()
        with self.board.waits.noted(wait):
            self.gate.wait_to_retry(wait.seconds)

    def skip(self, item: SkippedFile) -> None:
        """Books a file that becomes no sample."""
        note = Failure(item.path, item.reason)
        if item.lost:
            self.board.failed(note, Failed())
            return
        if len(self.ignored) < KEPT_NAMES:
            self.ignored.append(note)
        self.board.happened(Ignored())


class Engine(Protocol):
    """One way to store a dataset."""

    parallelism: int

    def set_parallelism(self, number: int) -> None:
        """How much is sent at once, from now on."""

    def work(self) -> None:
        """Does all of it. Raises Stopped, ConsoleError."""
