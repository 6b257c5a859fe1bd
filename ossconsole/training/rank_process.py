"""A rank of a run other than rank 0: `python -m ossconsole.training.rank_process`, with RankArgs on stdin.

It has no record, no checkpoints and no controls of its own: rank 0 records its warnings and errors.
"""

from __future__ import annotations

import base64
import os
import pickle
import signal
import sys
from collections.abc import Callable

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import logs_dir
from ossconsole.storage.client import ObjectStore
from ossconsole.training.child import become_child
from ossconsole.training.context import RunContext
from ossconsole.training.data import training_data
from ossconsole.training.distributed.ranks import READY, RankArgs, RankInfo


def main() -> int:
    """Trains as a rank; 0 after an orderly end. An error before the rendezvous is printed."""
    # Written by the process that started this one, to a pipe that nobody else has.
    args: RankArgs = pickle.loads(base64.b64decode(sys.stdin.buffer.read()))  # noqa: S301
    # `timeout`, systemd and Slurm send it to every process: without this one, rank 0 could write no checkpoint.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        become_child(logs_dir() / "native.log", parent=args.parent)

        def ready() -> None:
            print(READY, file=answers, flush=True)

        context = RunContext(args.run, args.profile, args.credentials, args.settings, emit=lambda _event: None)
        try:
            train_rank(context, args.rank_info, before_rendezvous=ready)
        except ConsoleError as error:
            print(error, file=answers, flush=True)
            return error.exit_code
    return 0


def train_rank(
    context: RunContext, rank_info: RankInfo, *, before_rendezvous: Callable[[], None] = lambda: None
) -> None:
    """Trains as one rank until the end of the run. Raises ConsoleError."""
    store = ObjectStore(context.profile, context.credentials)
    settings = context.settings
    data = training_data(
        store,
        context.profile.dataset_prefix,
        val_split=settings.val_split,
        seed=settings.seed,
        labels=settings.label_files,
    )
    from ossconsole.training.session import train

    train(context, store, data, rank_info, before_rendezvous=before_rendezvous)


if __name__ == "__main__":
    sys.exit(main())
