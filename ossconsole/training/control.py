"""What the loop and its reader processes share: the endpoint in use and the readers' process ids."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

from ossconsole.config.endpoints import EndpointKind

SPAWN = multiprocessing.get_context("spawn")
"""Readers are spawned: torch's watchdog then ends them when the parent dies; the connector does not survive a fork."""

_KINDS = tuple(EndpointKind)


class SharedControl:
    """The endpoint switch: one integer in shared memory that every reader looks at before each batch."""

    def __init__(self, kind: EndpointKind, workers: int) -> None:
        self._kind: Any = SPAWN.RawValue("i", _KINDS.index(kind))
        self._pids: Any = SPAWN.RawArray("i", workers)

    @property
    def endpoint(self) -> EndpointKind:
        return _KINDS[int(self._kind.value)]

    @endpoint.setter
    def endpoint(self, kind: EndpointKind) -> None:
        self._kind.value = _KINDS.index(kind)

    def register_reader(self, worker: int) -> None:
        """Called by reader `worker` in its own process, so that a stuck one can be ended."""
        self._pids[worker] = os.getpid()

    def kill_readers(self) -> None:
        """Ends the readers for certain: SIGKILL also reaches one that is stopped or deep in native retries."""
        readers = set(self._pids)
        for child in multiprocessing.active_children():
            if child.pid in readers:
                child.kill()
        self._pids[:] = [0] * len(self._pids)
