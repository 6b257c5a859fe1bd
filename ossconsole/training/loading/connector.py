"""The connector: its C++ module alone, with the profile's region, credentials and configuration."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ossconsole.config.credentials import Credentials, CredentialSource, mask_key_id
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import logs_dir, open_private
from ossconsole.config.profiles import Profile
from ossconsole.config.renewal import ends_within

ASKS_EVERY = timedelta(seconds=30)
"""The connector asks its credentials provider this often, from a thread of its own (seen with 1.2.3)."""


class EndpointFailedError(Exception):
    """The endpoint did not deliver samples that may exist."""


@dataclass(frozen=True)
class ConnectorSettings:
    """What a process needs to open the connector on a profile's bucket; it is pickled for the reader processes."""

    profile: Profile
    credentials: CredentialSource
    config_path: Path
    native_log: Path

    def open(
        self, kind: EndpointKind, *, number: int = 0, total: int = 1, provider: ConnectorCredentials | None = None
    ) -> Any:
        """A `DataSet` of the connector on an endpoint, for process `number` of `total`.

        Raises SettingsError when the profile has no such endpoint, and RuntimeError, the connector's only exception.
        """
        endpoint = self.profile.endpoint(kind)
        if endpoint is None:
            raise SettingsError(f"Profile {self.profile.name!r} has no {kind} endpoint.")
        provider = provider or ConnectorCredentials(self.credentials)
        with _masked_prints(provider):
            # The connector would infer a wrong region, or none, from accelerated endpoints.
            return native().new_oss_dataset(
                endpoint,
                "",
                provider,
                str(self.config_path),
                str(uuid.uuid4()),
                number,
                total,
                self.profile.region,
            )


class ConnectorClient:
    """The connector on an endpoint, opened again where its key would expire before it asks for the next one.

    It asks every 30 s (ASKS_EVERY). That is enough for a key that is renewed minutes before its end, not for one that
    lives a minute.
    """

    def __init__(self, settings: ConnectorSettings, kind: EndpointKind, *, number: int = 0, total: int = 1) -> None:
        self._settings = settings
        self._kind = kind
        self._number = number
        self._total = total
        self._provider = ConnectorCredentials(settings.credentials)
        self._opened: Any = None
        self._previous: Any = None  # requests may still be in flight

    def current(self) -> Any:
        """The `DataSet` to send the next requests with. Raises like `ConnectorSettings.open`."""
        if self._opened is None or self._is_outdated():
            provider = ConnectorCredentials(self._settings.credentials)
            opened = self._settings.open(self._kind, number=self._number, total=self._total, provider=provider)
            self._previous, self._opened, self._provider = self._opened, opened, provider
        return self._opened

    def _is_outdated(self) -> bool:
        key = self._provider.latest
        if key is None or not ends_within(key, 2 * ASKS_EVERY):
            return False
        try:
            return self._settings.credentials().access_key_id != key.access_key_id
        except ConsoleError:  # not renewed yet: this key is used to its end
            return False


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


def connector_native_log() -> Path:
    """The log for what the connector prints in the processes that read and write with it.

    Creates the file, so that a failure raises SettingsError here.
    """
    path = logs_dir() / "connector-native.log"
    os.close(open_private(path))
    return path


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
    """A credentials provider with the connector's interface.

    `given` are the AccessKey IDs it has returned, `latest` is the last pair.
    """

    def __init__(self, source: CredentialSource) -> None:
        self.given: set[str] = set()
        self.latest: Credentials | None = None
        self._source = source

    def get_credentials(self) -> Any:
        """The current key pair; called from a thread of the connector."""
        key = self._source()
        self.given.add(key.access_key_id)
        self.latest = key
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
