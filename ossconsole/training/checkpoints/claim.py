"""The claim of a run on its checkpoint prefix: two runs would overwrite each other's latest checkpoint."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from io import FileIO

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import READ_WRITE, decode_json, open_private, state_dir, unwritable
from ossconsole.config.profiles import Profile

log = logging.getLogger(__name__)


class Holder(msgspec.Struct, frozen=True):
    """Who has a prefix: the process and the id of its run."""

    pid: int
    run: str


class ClaimedError(ConsoleError):
    """Another run writes checkpoints to the same prefix; `holder` is None where it cannot be told which."""

    def __init__(self, where: str, holder: Holder | None) -> None:
        who = f"The run {holder.run} (process {holder.pid})" if holder else "Another run"
        super().__init__(
            f"{who} is going on and writes its checkpoints to {where}.",
            remedy="`ossconsole` shows it; wait for it, stop it, or give another --checkpoint-prefix.",
        )
        self.holder = holder


class Claim:
    """Holds the checkpoint prefix of `profile` for `run` until `release`, or until the process ends, however it ends.

    With `go_on` it holds it for the run that had it last, if there was one. It is known to this user on this machine
    only. Raises ClaimedError, SettingsError where its file cannot be opened.
    """

    def __init__(self, profile: Profile, run: str, *, go_on: bool = False) -> None:
        name = f"{profile.region}/{profile.bucket}/{profile.checkpoint_prefix}"
        path = state_dir() / "claims" / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.lock"
        self._file = FileIO(open_private(path, READ_WRITE), "r+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._file)
            self._file.close()
            raise ClaimedError(f"oss://{profile.bucket}/{profile.checkpoint_prefix}/", holder) from None
        except OSError as error:  # a network file system without locks
            self._file.close()
            raise unwritable(path, error) from error
        before = _holder(self._file) if go_on else None
        self.run = before.run if before else run
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(msgspec.json.encode(Holder(os.getpid(), self.run)))
        except OSError as error:
            # The lock holds all the same; only who has it cannot be told to others.
            log.warning("The claim %s cannot name its run: %s", path, error.strerror)

    def release(self) -> None:
        self._file.close()


def _holder(file: FileIO) -> Holder | None:
    try:
        return decode_json(file.read(4096), Holder)
    except msgspec.DecodeError:
        return None  # it is just being written
