"""What the Setup screen does with the bucket of the profile in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ossconsole.cli.checks.setup import dataset_check
from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.config.metadata import Instance, MetadataService
from ossconsole.config.profiles import Profile
from ossconsole.storage.accelerator import (
    Accelerator,
    accelerator_warnings,
    create_accelerator,
    delete_accelerator,
    read_accelerator,
)
from ossconsole.storage.errors import StorageError
from ossconsole.storage.probe.report import OnStep, ProbeReport
from ossconsole.tui.console import AcceleratorState

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class BucketSetup:
    """See `ossconsole.tui.console.BucketSetup`; every method blocks and raises ConsoleError."""

    profile: Profile
    credentials: CredentialSource
    readonly: bool = False

    def probe(self, on_step: OnStep) -> ProbeReport:
        from ossconsole.storage.probe.probe import probe

        return probe(self.profile, self.credentials, on_step=on_step, writes=not self.readonly)

    def instance(self) -> Instance:
        return MetadataService().instance()

    def accelerator(self) -> AcceleratorState:
        found = read_accelerator(self._store(EndpointKind.ACCELERATED))
        if found is None:
            return AcceleratorState(None)
        try:
            size = dataset_check(self._store(EndpointKind.STANDARD))[1]
        except StorageError:  # the state is worth showing to a key that may not read the dataset
            size = None
        return AcceleratorState(found, tuple(accelerator_warnings(found, self.profile.dataset_prefix, size)))

    def create_accelerator(self, wanted: Accelerator) -> None:
        self._refuse_readonly()
        create_accelerator(self._store(EndpointKind.ACCELERATED), wanted)

    def delete_accelerator(self) -> None:
        self._refuse_readonly()
        delete_accelerator(self._store(EndpointKind.ACCELERATED))

    def create_bucket(self) -> None:
        self._refuse_readonly()
        self._store(EndpointKind.STANDARD).create_bucket()

    def _store(self, kind: EndpointKind) -> ObjectStore:
        from ossconsole.storage.client import ObjectStore
        from ossconsole.storage.retry import NO_RETRY

        return ObjectStore(self.profile, self.credentials, kind, timeout_s=_TIMEOUT_S, retry=NO_RETRY)

    def _refuse_readonly(self) -> None:
        if self.readonly:
            raise SettingsError("The console was started with --readonly.", remedy="Start it without.")
