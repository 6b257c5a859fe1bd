"""The connector: its C++ module alone, with the profile's region, credentials and configuration."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ossconsole.config.connector import checked_connector_config
from ossconsole.config.credential_sources import encode_connector_file
from ossconsole.config.credentials import CredentialSource, mask_key_id
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import logs_dir, open_private
from ossconsole.config.profiles import Profile
from ossconsole.config.renewal import utc_now


class EndpointFailedError(Exception):
    """The endpoint did not deliver samples that may exist."""


@dataclass(frozen=True)
class ConnectorSettings:
    """What a process needs to open the connector on a profile's bucket; it is pickled for the reader processes."""

    profile: Profile
    credentials: CredentialSource
    config_path: Path
    native_log: Path

    @classmethod
    def of(cls, profile: Profile, credentials: CredentialSource) -> ConnectorSettings:
        """With the user's configuration of the connector, and a log of its prints, which is created.

        Raises SettingsError.
        """
        native_log = logs_dir() / "connector-native.log"
        os.close(open_private(native_log))
        return cls(profile, credentials, checked_connector_config(), native_log)

    def open(self, kind: EndpointKind, *, number: int = 0, total: int = 1) -> Any:
        """A `DataSet` of the connector on an endpoint, for process `number` of `total`.

        Raises SettingsError when the profile has no such endpoint, and RuntimeError, the connector's only exception;
        also without credentials.
        """
        endpoint = self.profile.endpoint(kind)
        if endpoint is None:
            raise SettingsError(f"Profile {self.profile.name!r} has no {kind} endpoint.")
        try:
            key = self.credentials()
        except ConsoleError as error:
            raise RuntimeError(str(error)) from error
        provider = ConnectorCredentials(self.credentials)
        provider.given.add(key.access_key_id)
        # It asks a provider every 30 s, which is too late for a key of 30 s, and reads a file whenever the key in it
        # expires (both seen with 1.2.3).
        temporary = key.expiration is not None
        with _masked_prints(provider):
            # The connector would infer a wrong region, or none, from accelerated endpoints.
            return native().new_oss_dataset(
                endpoint,
                _key_file(self.credentials).path if temporary else "",
                None if temporary else provider,
                str(self.config_path),
                str(uuid.uuid4()),
                number,
                total,
                self.profile.region,
            )


class _KeyFile:
    """The current key as a file in memory, which no other user can read and which is on no disk.

    A thread replaces it as soon as the source has renewed the key.
    """

    def __init__(self, source: CredentialSource) -> None:
        self._source = source
        self._key = source()
        self._descriptor = self._file()
        self.path = f"/proc/self/fd/{self._descriptor}"
        threading.Thread(target=self._follow, name="connector-key", daemon=True).start()

    def _follow(self) -> None:
        while True:
            end = self._key.expiration
            left_s = _MAX_PAUSE_S if end is None else (end - utc_now()).total_seconds() / 20
            time.sleep(min(max(left_s, _MIN_PAUSE_S), _MAX_PAUSE_S))
            try:
                found = self._source()
            except ConsoleError:  # the requests with the old key report it
                continue
            if found != self._key:
                self._key = found
                descriptor = self._file()
                os.dup2(descriptor, self._descriptor, inheritable=False)  # whole: the connector never reads half a file
                os.close(descriptor)

    def _file(self) -> int:
        descriptor = os.memfd_create("connector-key")
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(encode_connector_file(self._key))
        return descriptor


_MIN_PAUSE_S, _MAX_PAUSE_S = 0.2, 10.0


@functools.lru_cache
def _key_file(source: CredentialSource) -> _KeyFile:
    """One for each source of a process."""
    return _KeyFile(source)


@functools.cache
def native() -> Any:
    """The connector's C++ module.

    The Python package around it imports torch, which a reader does not need: with 1.2.3 that takes 3 s and 580 MB in
    every reader, the module alone 0.02 s and 13 MB. The package's own `OssMapDataset` and `OssCheckpoint` call the same
    classes. Raises ConsoleError when the package is missing or has another layout.
    """
    package = importlib.util.find_spec("osstorchconnector")
    folders = list(package.submodule_search_locations or ()) if package else []
    spec = PathFinder.find_spec("oss_connector", [str(Path(folder, "_oss_connector")) for folder in folders])
    if spec is None or spec.loader is None:
        raise ConsoleError(
            "The connector (osstorchconnector 1.2) is not installed for this Python.",
            remedy="pip install 'osstorchconnector>=1.2.3,<1.3'",
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _masked_prints(provider: ConnectorCredentials) -> Iterator[None]:
    """Masks the AccessKey IDs in what is printed to standard output meanwhile.

    The connector prints each credential's ID while it opens, before it reads its configuration with the log level (seen
    with 1.2.3). Standard error, with its messages before an abort, is not redirected.
    """
    sys.stdout.flush()
    held, output = os.memfd_create("connector"), os.dup(1)
    os.dup2(held, 1)
    try:
        yield
    finally:
        os.dup2(output, 1)
        text = os.pread(held, os.fstat(held).st_size, 0)
        for key_id in provider.given:
            text = text.replace(key_id.encode(), mask_key_id(key_id).encode())
        with contextlib.suppress(OSError):  # a full disk must not end a reader
            os.write(output, text)
        os.close(output)
        os.close(held)


class ConnectorCredentials:
    """A credentials provider with the connector's interface; `given` are the AccessKey IDs it has returned."""

    def __init__(self, source: CredentialSource) -> None:
        self.given: set[str] = set()
        self._source = source

    def get_credentials(self) -> Any:
        key = self._source()
        self.given.add(key.access_key_id)
        return _PlainKey(
            key.access_key_id,
            key.access_key_secret.reveal(),
            key.security_token.reveal() if key.security_token else "",
        )


@dataclass(frozen=True, repr=False)
class _PlainKey:
    """Plain strings for the C++ module, kept out of `repr`."""

    access_key_id: str
    access_key_secret: str
    security_token: str
