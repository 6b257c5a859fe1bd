"""A rank of a run, other than rank 0: `python -m ossconsole.training.distributed.rank_process`, Orders on stdin.

It has no record, no checkpoints and no controls of its own: what happens to it goes to the one that leads.
"""

from __future__ import annotations

import base64
import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import logs_dir
from ossconsole.config.profiles import Profile
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry.events import Event
from ossconsole.training.child import become_child
from ossconsole.training.context import RunContext
from ossconsole.training.data import training_data
from ossconsole.training.distributed.rank import Place
from ossconsole.training.settings import TrainSettings

READY = "ready"
"""What a follower prints when it is about to meet the others."""


@dataclass(frozen=True)
class Orders:
    """What a follower needs to train along; `leader` is the id of the process that started it."""

    leader: int
    run: str
    profile: Profile
    credentials: CredentialSource
    settings: TrainSettings
    place: Place


def main() -> int:
    """Follows the orders; 0 when the run ended in an orderly way. What stopped it before it was ready is printed."""
    # Written by the process that started this one, to a pipe that nobody else has.
    orders: Orders = pickle.loads(base64.b64decode(sys.stdin.buffer.read()))  # noqa: S301
    # `timeout`, systemd and Slurm send it to every process: without this one, rank 0 could write no checkpoint.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        become_child(logs_dir() / "native.log", parent=orders.leader)

        def ready() -> None:
            print(READY, file=answers, flush=True)

        context = RunContext(orders.run, orders.profile, orders.credentials, orders.settings, _nobody)
        try:
            follow(context, orders.place, before_meeting=ready)
        except ConsoleError as error:
            print(error, file=answers, flush=True)
            return error.exit_code
    return 0


def follow(context: RunContext, place: Place, *, before_meeting: Callable[[], None] = lambda: None) -> None:
    """Trains along to the end of the run. Raises ConsoleError."""
    store = ObjectStore(context.profile, context.credentials)
    data = training_data(store, context.profile.dataset_prefix)
    from ossconsole.training.session import Session

    Session(context, store, data, place, before_meeting=before_meeting).train()


def _nobody(_event: Event) -> None:
    """Events of a follower reach the record through the leader."""


if __name__ == "__main__":
    sys.exit(main())
