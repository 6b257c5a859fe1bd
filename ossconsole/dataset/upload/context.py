"""UploadContext: what the engines of an upload share, its summary, and which errors of OSS stop all of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Protocol

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.profiles import Profile
from ossconsole.config.text import counted
from ossconsole.dataset.manifest import Unused, UnusedTally
from ossconsole.dataset.source.layout import Layout, SkippedFile
from ossconsole.dataset.upload.flow import BandwidthCap, Gate
from ossconsole.dataset.upload.journal import Failure
from ossconsole.dataset.upload.progress import Failed, Ignored, Scoreboard
from ossconsole.dataset.upload.settings import UploadSettings
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.retry import RetryPolicy, Wait

KEPT_NAMES = 1000
RETRIES = RetryPolicy(attempts=6)
"""Of each request of an upload: nobody may be there to start it again."""


@dataclass
class UploadContext:
    """`removed`, `pruned`, `unknown`, `manifest`, `ignored` and `unused` become those of the summary."""

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
    _files: UnusedTally = field(default_factory=UnusedTally)
    _layout: Layout | None = None

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
        self._files.add(item.path, item.reason)
        self.board.happened(Ignored())

    def settle(self, layout: Layout) -> None:
        """Every file has been planned: what else of the source is not used is known now."""
        self._layout = layout

    @property
    def unused(self) -> tuple[Unused, ...]:
        """What of the source is not used, by reason."""
        return (*self._files.groups(), *(self._layout.unused if self._layout else ()))

    def no_samples(self) -> str:
        """The message of an upload that has nothing to list."""
        tally = self.board.tally
        return (
            f"No picture in {self.settings.source} became a sample "
            f"({tally.failed} failed, {counted(tally.ignored, 'file')} not used)."
        )


class Engine(Protocol):
    """One way to store a dataset."""

    parallelism: int

    def set_parallelism(self, number: int) -> None:
        """How much is sent at once, from now on."""

    def work(self) -> None:
        """Does all of it. Raises Stopped, ConsoleError."""


# Refusals that concern every object alike.
_FATAL_CODES = frozenset(
    {
        "InvalidAccessKeyId",
        "InvalidSecurityToken",
        "NoSuchBucket",
        "RequestTimeTooSkewed",
        "SecurityTokenExpired",
        "SignatureDoesNotMatch",
    }
)


class Refusals:
    """Tells a refusal of one object from trouble that would meet every other one too."""

    def __init__(self, give_up_after: int) -> None:
        """Gives up after so many objects in a row that got no answer at all."""
        self._give_up_after = give_up_after
        self._silent = 0

    def accepted(self) -> None:
        self._silent = 0

    def weigh(self, error: StorageError) -> None:
        """Raises the error when going on makes no sense."""
        if error.code in _FATAL_CODES or error.throttled:  # the request has waited as long as there is patience
            raise error
        if error.status == 0 and error.retriable:
            self._silent += 1
            if self._silent >= self._give_up_after:
                raise error
