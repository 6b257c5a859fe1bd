"""UploadJob: prepares a source's pictures and uploads them as a dataset, in threads of its own."""

from __future__ import annotations

import logging
import threading

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.dataset.manifest import Unused
from ossconsole.dataset.shards.upload import ShardUpload
from ossconsole.dataset.upload.context import KEPT_NAMES, UploadContext
from ossconsole.dataset.upload.flow import BandwidthCap, Gate, Stopped
from ossconsole.dataset.upload.journal import Failure
from ossconsole.dataset.upload.progress import Phase, Picture, Scoreboard, UploadProgress
from ossconsole.dataset.upload.samples import SampleUpload
from ossconsole.dataset.upload.settings import UploadSettings

_log = logging.getLogger(__name__)


class UploadSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How an upload ended. Counts are of files: `uploaded + skipped + failed` is all there were in the source.

    `skipped` are `unchanged` samples and `ignored` files that are not used; `bytes` were sent for `uploaded`
    samples. `removed` are keys in the bucket whose files are gone from the source (at most a thousand), `pruned` tells
    whether they were deleted; `unknown` objects below the prefix are none of this dataset's samples. `unused` says what
    of the source is not used, by reason.
    """

    uploaded: int
    skipped: int
    failed: int
    bytes: int
    seconds: float
    samples_per_s: float
    unchanged: int = 0
    ignored: int = 0
    retries: int = 0
    removed: tuple[str, ...] = ()
    pruned: bool = False
    unknown: int = 0
    cancelled: bool = False
    manifest: str = ""
    failures: tuple[Failure, ...] = ()
    ignored_files: tuple[Failure, ...] = ()
    unused: tuple[Unused, ...] = ()


class UploadJob:
    """One upload, from `start` to its summary. It belongs to no screen and goes on without one."""

    is_remote = False
    """Another process's upload, as the console sees it, has True here."""

    def __init__(self, profile: Profile, credentials: CredentialSource, settings: UploadSettings) -> None:
        """Raises SettingsError when the settings make no sense."""
        settings.recipe.check()
        self.profile = profile = settings.placed(profile)
        self.settings = settings
        self.error: ConsoleError | None = None
        """Why the upload ended early."""
        self._gate = Gate()
        self._cap = BandwidthCap(settings.bandwidth, self._gate)
        self._board = Scoreboard(settings.worker_count)
        self._context = UploadContext(profile, credentials, settings, self._board, self._gate, self._cap)
        self._engine = (ShardUpload if settings.per_shard else SampleUpload)(self._context)
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._main, name="upload", daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    @property
    def source(self) -> str:
        return str(self.settings.source)

    def pause(self) -> None:
        """Stops after the pictures and samples in hand."""
        self._gate.pause()

    def resume(self) -> None:
        self._gate.resume()

    def cancel(self) -> None:
        """Ends the upload; what was sent stays, and the next upload goes on from there."""
        self._gate.stop()

    def set_parallelism(self, number: int) -> None:
        """How many samples are sent at once (1 to 64), from now on."""
        self._engine.set_parallelism(number)

    def set_bandwidth(self, bytes_per_s: float | None) -> None:
        """Caps what is sent, from now on; None for no cap."""
        self._cap.set(bytes_per_s)

    def progress(self) -> UploadProgress:
        """Where the upload stands now; cheap."""
        return self._board.snapshot(
            paused=self._gate.paused,
            parallelism=self._engine.parallelism,
            bandwidth=self._cap.limit,
            error=str(self.error or ""),
        )

    def picture(self) -> Picture | None:
        """The newest prepared sample, for a look at it."""
        return self._board.picture

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; False on timeout."""
        return self._ended.wait(timeout_s)

    def wait(self, timeout_s: float | None = None) -> UploadSummary:
        """The summary, once the upload has ended. Raises the ConsoleError that ended it early, TimeoutError."""
        if not self._ended.wait(timeout_s):
            raise TimeoutError("the upload is still running")
        if self.error is not None:
            raise self.error
        return self.summary()

    def summary(self) -> UploadSummary:
        """What has happened so far."""
        tally, seconds, found = self._board.tally, self._board.seconds, self._context
        return UploadSummary(
            uploaded=tally.uploaded,
            skipped=tally.unchanged + tally.ignored,
            failed=tally.failed,
            bytes=tally.bytes,
            seconds=seconds,
            samples_per_s=tally.uploaded / seconds if seconds > 0 else 0.0,
            unchanged=tally.unchanged,
            ignored=tally.ignored,
            retries=self._board.retries,
            removed=tuple(found.removed[:KEPT_NAMES]),
            pruned=found.pruned,
            unknown=found.unknown,
            cancelled=self._board.phase is Phase.CANCELLED,
            manifest=found.manifest,
            failures=tuple(self._board.failures),
            ignored_files=tuple(found.ignored),
            unused=found.unused,
        )

    # The job's own thread

    def _main(self) -> None:
        phase = Phase.FAILED
        try:
            self._engine.work()
            phase = Phase.DONE
        except Stopped:
            phase = Phase.CANCELLED
        except ConsoleError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001  a thread has nobody above it who would report
            _log.exception("the upload ended with an unexpected error")
            self.error = ConsoleError(f"The upload ended with an unexpected {type(error).__name__}: {error}.")
        finally:
            self._board.end(phase)
            self._ended.set()
