"""The bucket of the contract suite: a sandbox, or the real bucket of the profile named by OSSCONSOLE_CONTRACT_PROFILE.

On a real bucket every object is written below a prefix of this session's own (`contract_prefix`), which is emptied at
its end. The bucket's accelerator is only read, unless OSSCONSOLE_CONTRACT_ACCELERATOR=create permits creating one: it
is billed by the hour, and the tests that need it delete it again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ossconsole.config.credential_sources import FixedSource, find_credentials
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.profiles import Profile, load_settings
from ossconsole.storage.client import ObjectStore
from tests.sandboxed import sandboxed

PROFILE_VARIABLE = "OSSCONSOLE_CONTRACT_PROFILE"
ACCELERATOR_VARIABLE = "OSSCONSOLE_CONTRACT_ACCELERATOR"


@dataclass(frozen=True)
class ContractTarget:
    """The bucket under test. `may_create`: an accelerator may be created and deleted."""

    profile: Profile
    credentials: FixedSource
    real: bool
    may_create: bool

    def store(self, kind: EndpointKind = EndpointKind.STANDARD) -> ObjectStore:
        """Through one endpoint, with the console's own retries. Skips the test where the profile lacks the endpoint."""
        if self.profile.endpoint(kind) is None:
            pytest.skip(f"profile {self.profile.name} has no {kind} endpoint")
        return ObjectStore(self.profile, self.credentials, kind)


@pytest.fixture(scope="session")
def contract_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContractTarget]:
    """Made before the fixture `home` hides the profile and the keys; a temporary key must outlast the session."""
    name = os.environ.get(PROFILE_VARIABLE, "")
    if name:
        profile = load_settings().profile(name)
        may_create = os.environ.get(ACCELERATOR_VARIABLE) == "create"
        yield ContractTarget(profile, FixedSource(find_credentials(profile)()), real=True, may_create=may_create)
        return
    with sandboxed(tmp_path_factory.mktemp("contract")) as running:
        yield ContractTarget(running.process.profile(), running.owner, real=False, may_create=True)


@pytest.fixture
def contract_store(contract_target: ContractTarget) -> Iterator[ObjectStore]:
    """The bucket through its standard endpoint."""
    store = contract_target.store()
    yield store
    store.close()


@pytest.fixture(scope="session")
def _session_prefix(contract_target: ContractTarget) -> Iterator[str]:
    prefix = f"ossconsole-contract/{uuid.uuid4().hex[:12]}/"
    yield prefix
    store = contract_target.store()
    store.delete_many(found.key for found in store.list_all(prefix))
    store.close()


@pytest.fixture
def contract_prefix(_session_prefix: str, request: pytest.FixtureRequest) -> str:
    """A prefix of the test's own, with a slash at its end; its objects are deleted when the session ends."""
    return f"{_session_prefix}{request.node.name.partition('[')[0]}-{uuid.uuid4().hex[:6]}/"


@pytest.fixture
def contract_accelerator(contract_target: ContractTarget) -> Iterator[ObjectStore]:
    """The bucket through its accelerated endpoint; skips where the profile has none. Change nothing through it."""
    store = contract_target.store(EndpointKind.ACCELERATED)
    yield store
    store.close()


@pytest.fixture
def contract_permission(contract_target: ContractTarget) -> Callable[[], None]:
    """Call it before a test creates an accelerator: it skips the test where that is not permitted."""

    def check() -> None:
        if not contract_target.may_create:
            pytest.skip(f"creates a billed accelerator; {ACCELERATOR_VARIABLE}=create permits it")

    return check


@pytest.fixture
def own_store(contract_target: ContractTarget, contract_store: ObjectStore) -> Iterator[ObjectStore]:
    """A new bucket of the sandbox, for tests of a bucket's settings; skips on a real bucket, whose settings stay."""
    if contract_target.real:
        pytest.skip("creates and configures a bucket: on the sandbox only")
    store = contract_store.for_bucket(f"contract-{uuid.uuid4().hex[:12]}")
    store.create_bucket()
    yield store
    store.close()
