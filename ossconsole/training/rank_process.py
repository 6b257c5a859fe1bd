"""The process of a rank, which `launch.RANK_COMMAND` starts with the arguments of LocalRanks on stdin.

The process that started it watches it, has the record and the claim on the checkpoints, and passes on the requests of
the user, which rank 0 reads from stdin.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable
from typing import BinaryIO

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import native_log_path
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event
from ossconsole.training.child import become_child
from ossconsole.training.context import BrokenDeviceError, RunContext
from ossconsole.training.distributed.launch import RankFailure, RankReport, Request, read_args
from ossconsole.training.distributed.ranks import RankLostError
from ossconsole.training.preflight import broken_library
from ossconsole.training.rank import Rank

log = logging.getLogger(__name__)


class _Reports:
    """Sends events and the error to the process that started this one; only the first error, in its own words."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()  # the checkpoint thread emits too
        self._failed = False

    def event(self, event: Event) -> None:
        self._send(RankReport(event=msgspec.Raw(events.encode(event))))

    def failure(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._send(RankReport(failure=_failure(error)))

    def _send(self, report: RankReport) -> None:
        # A parent that has ended kills this process.
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._pipe.write(msgspec.json.encode(report) + b"\n")
            self._pipe.flush()


def _failure(error: Exception) -> RankFailure:
    if isinstance(error, ImportError):
        error = broken_library(error)
    if isinstance(error, ConsoleError):
        return RankFailure(
            error.message,
            error.remedy,
            error.exit_code,
            lost=isinstance(error, RankLostError),
            broken_gpu=isinstance(error, BrokenDeviceError),
        )
    return RankFailure(
        f"Failed unexpectedly: {type(error).__name__}: {error}.", f"{native_log_path()} has the traceback."
    )


def main() -> int:
    """Trains as a rank; 0 after an orderly end. Errors are reported to the parent."""
    requests = sys.stdin.buffer
    args = read_args(requests)
    # `timeout`, systemd and Slurm send it to every process: without this one, rank 0 could write no checkpoint.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb") as pipe:
        become_child(native_log_path(), parent=args.parent)
        logging.basicConfig(format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")
        reports = _Reports(pipe)
        zero = args.rank_info.is_rank_zero
        context = RunContext(
            args.run, args.profile, args.credentials, args.settings, reports.event if zero else lambda _event: None
        )
        context.on_failure = reports.failure
        threading.Thread(target=_follow, args=(requests, context), name="requests", daemon=True).start()
        try:
            Rank(context, args.rank_info).train()
        except Exception as error:
            if not isinstance(error, ConsoleError):
                log.exception("%s failed", args.rank_info)
            reports.failure(error)
            return error.exit_code if isinstance(error, ConsoleError) else 1
    return 0


def _follow(requests: Iterable[bytes], context: RunContext) -> None:
    """Carries out the requests until the parent ends."""
    for line in requests:
        msgspec.json.decode(line, type=Request).apply(context)


if __name__ == "__main__":
    # Not sys.exit: the thread that waits for requests holds the lock of its stream, and CUDA may hang at the end.
    os._exit(main())
