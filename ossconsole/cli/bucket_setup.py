"""The operations of the Setup screen on the bucket of the profile in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ossconsole.cli.checks import dataset_check
from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.config.metadata import Instance, MetadataService
from ossconsole.config.profiles import Profile
from ossconsole.storage.accelerator import (
    Accelerator,
    accelerator_warnings,
    delete_accelerator,
    other_accelerators,
    read_accelerator,
    save_accelerator,
)
from ossconsole.storage.errors import StorageError
from ossconsole.storage.probe.report import OnStep, ProbeReport
from ossconsole.tui.console import AcceleratorState

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class BucketSetupService:
    """Implements `ossconsole.tui.console.BucketAdmin`; every method blocks and raises ConsoleError."""

    profile: Profile
    credentials: CredentialSource
    readonly: bool = False

    def probe(self, on_step: OnStep) -> ProbeReport:
        """Tests both endpoints and the key's permissions; `on_step` is called from other threads."""
        from ossconsole.storage.probe.probe import probe

        return probe(self.profile, self.credentials, on_step=on_step, writes=not self.readonly)

    def instance(self) -> Instance:
        """The region, zone and type of this ECS instance. Raises MetadataError elsewhere."""
        return MetadataService().instance()

    def accelerator(self) -> AcceleratorState:
        """The bucket's accelerator with warnings about its configuration."""
        store = self._store(EndpointKind.ACCELERATED)
        found = read_accelerator(store)
        others = other_accelerators(store, found.zone if found else "")
        if found is None:
            return AcceleratorState(None, others=others)
        try:
            size = dataset_check(self._store(EndpointKind.STANDARD))[1]
        except StorageError:  # a key that may not read the dataset still gets the accelerator's state
            size = None
        warnings = tuple(accelerator_warnings(found, self.profile.dataset_prefix, size))
        return AcceleratorState(found, warnings, others)

    def save_accelerator(self, wanted: Accelerator, present: Accelerator | None) -> None:
        """Creates an accelerator, or changes `present`."""
        self._refuse_readonly()
        save_accelerator(self._store(EndpointKind.ACCELERATED), wanted, present=present)

    def delete_accelerator(self, zone: str) -> None:
        """Deletes the accelerator of a zone."""
        self._refuse_readonly()
        delete_accelerator(self._store(EndpointKind.ACCELERATED), zone)

    def create_bucket(self) -> None:
        """Creates the profile's bucket."""
        self._refuse_readonly()
        self._store(EndpointKind.STANDARD).create_bucket()

    def _store(self, kind: EndpointKind) -> ObjectStore:
        from ossconsole.storage.client import ObjectStore
        from ossconsole.storage.retry import NO_RETRY

        return ObjectStore(self.profile, self.credentials, kind, timeout_s=_TIMEOUT_S, retry=NO_RETRY)

    def _refuse_readonly(self) -> None:
        if self.readonly:
            raise SettingsError("The console was started with --readonly.", remedy="Start it without.")
