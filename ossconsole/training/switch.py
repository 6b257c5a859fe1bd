"""The endpoint switch, which the loop and its reader processes share."""

from __future__ import annotations

import multiprocessing
from typing import Any

from ossconsole.config.endpoints import EndpointKind

SPAWN = multiprocessing.get_context("spawn")
"""Processes are spawned: neither the connector nor CUDA survives a fork."""

_KINDS = tuple(EndpointKind)


class EndpointSwitch:
    """One integer in shared memory that every reader looks at before each batch."""

    def __init__(self, kind: EndpointKind) -> None:
        self._kind: Any = SPAWN.RawValue("i", _KINDS.index(kind))

    @property
    def endpoint(self) -> EndpointKind:
        return _KINDS[int(self._kind.value)]

    @endpoint.setter
    def endpoint(self, kind: EndpointKind) -> None:
        self._kind.value = _KINDS.index(kind)
