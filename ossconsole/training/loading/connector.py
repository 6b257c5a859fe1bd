"""The connector as the console uses it: its C++ part alone, with the region, our credentials and configuration."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ossconsole.config.credentials import CredentialSource, mask_key_id
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import logs_dir, open_private
from ossconsole.config.profiles import Profile


@dataclass(frozen=True)
class ConnectorSettings:
    """What a process needs to open the connector on a profile's bucket; it is sent to the reader processes."""

    profile: Profile
    credentials: CredentialSource
    config_path: Path
    native_log: Path

    def open(self, kind: EndpointKind, *, number: int = 0, total: int = 1) -> Any:
        """A `DataSet` of the connector on an endpoint; `number` of `total` processes that use it.

        Raises SettingsError where the profile has no such endpoint, RuntimeError (the connector's only exception).
        """
        endpoint = self.profile.endpoint(kind)
        if endpoint is None:
            raise SettingsError(f"Profile {self.profile.name!r} has no {kind} endpoint.")
        provider = _ConnectorCredentials(self.credentials)
        with _masked_prints(provider):
            # The region is always given: the connector infers a wrong one, or none, from accelerated endpoints.
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


@functools.cache
def native() -> Any:
    """The connector's C++ module.

    The Python package around it imports torch, for which a process that only reads has no use: seen with 1.2.3, it
    costs 3 s and 580 MB in every reader, the module alone 0.02 s and 13 MB. Its classes are what the package's own
    `OssMapDataset` and `OssCheckpoint` call. Raises ConsoleError when the package is missing or built otherwise.
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
    """Where the processes that read and write with the connector send what it prints.

    The file is made here already, so that the reason why it cannot be is told in words. Raises SettingsError.
    """
    path = logs_dir() / "connector-native.log"
    os.close(open_private(path))
    return path


@contextlib.contextmanager
def _masked_prints(provider: _ConnectorCredentials) -> Iterator[None]:
    """Shortens the AccessKey IDs in what is printed to standard output meanwhile.

    While it opens, the connector prints each credential's ID whole; its configuration, and the log level with it, is
    read later (seen with 1.2.3). What it has to say when it aborts goes to standard error, which is not held back.
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
        with contextlib.suppress(OSError):  # a full disk keeps no prints, and ends no reader
            os.write(output, text)
        os.close(output)
        os.close(held)


class _ConnectorCredentials:
    """A credentials provider in the connector's shape; `given` are the IDs that it has handed out."""

    def __init__(self, source: CredentialSource) -> None:
        self.given: set[str] = set()
        self._source = source

    def get_credentials(self) -> Any:
        found = self._source()
        self.given.add(found.access_key_id)
        return _Pair(
            found.access_key_id,
            found.access_key_secret.reveal(),
            found.security_token.reveal() if found.security_token else "",
        )


class _Pair:
    """Plain strings for the C++ side, kept out of `repr`."""

    __slots__ = ("access_key_id", "access_key_secret", "security_token")

    def __init__(self, access_key_id: str, access_key_secret: str, security_token: str) -> None:
        self.access_key_id = access_key_id
        self.access_key_secret = access_key_secret
        self.security_token = security_token
