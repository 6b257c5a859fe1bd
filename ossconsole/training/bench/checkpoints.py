"""The checkpoint part of a benchmark: writes of one size through the connector, and reads as a resumed run reads."""

from __future__ import annotations

import contextlib
import functools
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.storage.client import ObjectStore
from ossconsole.training.bench.mount import PageCache, page_cache, read_past_cache, write_synced
from ossconsole.training.bench.results import Spread
from ossconsole.training.checkpoints.store import CheckpointWriter
from ossconsole.training.loading.connector import ConnectorSettings

_TIMEOUT_S = 600.0
_PIECE = 1 << 20


class CheckpointReading(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="checkpoint"):
    """One write or read; `what` is such as "write standard" or "read accelerated, first" (or "again")."""

    time: float
    simulated: bool
    what: str
    round: int
    bytes: int
    seconds: float

    @property
    def bytes_per_s(self) -> float:
        """The rate."""
        return self.bytes / self.seconds


class CheckpointSummary(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="checkpoints"):
    """The last line: seconds by what was done, with checkpoints of `bytes` bytes.

    `page_cache` says how this machine's page cache was kept out of the reads of a mounted folder.
    """

    time: float
    simulated: bool
    bytes: int
    seconds: dict[str, Spread]
    page_cache: str = ""


CheckpointEvent: TypeAlias = CheckpointReading | CheckpointSummary


class CheckpointBench:
    """Writes `rounds` checkpoints of `size` bytes, reads each twice through every endpoint, and deletes it.

    Every object has a key of its own below the checkpoint prefix. Files of the same size are written to the folder
    `mount` and read there. `on_event` gets each reading as it is taken.
    """

    def __init__(
        self,
        profile: Profile,
        credentials: CredentialSource,
        *,
        size: int,
        rounds: int,
        mount: Path | None = None,
        on_event: Callable[[CheckpointEvent], None] = lambda _: None,
    ) -> None:
        self._profile = profile
        self._credentials = credentials
        self._rounds = rounds
        self._mount = mount
        self._page_cache: PageCache | None = None
        self._on_event = on_event
        self._data = (secrets.token_bytes(min(size, _PIECE)) * (size // _PIECE + 1))[:size]
        self._taken: list[CheckpointReading] = []

    def run(self) -> CheckpointSummary:
        """All readings; the summary is also the last event. Raises ConsoleError."""
        profile, credentials = self._profile, self._credentials
        connector = ConnectorSettings.of(profile, credentials)
        with contextlib.ExitStack() as resources:
            writer = CheckpointWriter(connector)
            resources.callback(writer.close)
            stores = {
                kind: resources.enter_context(contextlib.closing(ObjectStore(profile, credentials, kind)))
                for kind in EndpointKind
                if profile.endpoint(kind)
            }
            for number in range(self._rounds):
                if self._mount is not None and number % 2:
                    self._mounted_round(number, self._mount)
                self._round(number, writer, stores)
                if self._mount is not None and not number % 2:
                    self._mounted_round(number, self._mount)
        summary = self._summary()
        self._on_event(summary)
        return summary

    def _round(self, number: int, writer: CheckpointWriter, stores: dict[EndpointKind, ObjectStore]) -> None:
        key = f"{self._profile.checkpoint_prefix}/bench-{secrets.token_hex(6)}.bin"
        try:
            self._time("write standard", number, lambda: writer.write(key, self._data, _TIMEOUT_S, _ignore))
            for kind in list(stores) if number % 2 == 0 else list(stores)[::-1]:
                read = functools.partial(_read, stores[kind], key, len(self._data))
                for again in ("first", "again"):
                    self._time(f"read {kind}, {again}", number, read)
        finally:
            next(iter(stores.values())).delete(key)

    def _mounted_round(self, number: int, folder: Path) -> None:
        path = folder / f"ossconsole-bench-{secrets.token_hex(6)}.bin"
        try:
            self._time("write mount", number, lambda: write_synced(path, self._data))
            cache = self._page_cache = self._page_cache or page_cache(path)
            for again in ("first", "again"):
                self._time(f"read mount, {again}", number, lambda: read_past_cache(path, len(self._data), cache))
        finally:
            path.unlink(missing_ok=True)

    def _time(self, what: str, number: int, action: Callable[[], None]) -> None:
        begun = time.perf_counter()
        action()
        reading = CheckpointReading(
            time=time.time(),
            simulated=self._profile.simulated,
            what=what,
            round=number,
            bytes=len(self._data),
            seconds=time.perf_counter() - begun,
        )
        self._taken.append(reading)
        self._on_event(reading)

    def _summary(self) -> CheckpointSummary:
        seconds: dict[str, list[float]] = {}
        for each in self._taken:
            seconds.setdefault(each.what, []).append(each.seconds)
        return CheckpointSummary(
            time=time.time(),
            simulated=self._profile.simulated,
            bytes=len(self._data),
            seconds={what: spread for what, values in seconds.items() if (spread := Spread.of(values)) is not None},
            page_cache=str(self._page_cache or ""),
        )


def _ignore(_written: int) -> None:
    pass


def _read(store: ObjectStore, key: str, size: int) -> None:
    found = len(store.get(key))
    if found != size:
        raise ConsoleError(f"{store.uri(key)} has {found:,} of {size:,} bytes.", remedy="Run it again.")
