"""Uploads through a failing service: after the rerun at the latest, the bucket is the plan, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.dataset.manifest import manifest_key
from ossconsole.dataset.upload.job import RETRIES, UploadSummary
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.faults import Action, Error, FaultPlan, LostReply, MalformedListing, Reset, Rule, WrongCrc
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.retry import RetryPolicy
from tests.dataset.conftest import make_pictures
from tests.dataset.uploads import WAIT_S, bucket, check_manifest_is_the_bucket, settings_for, upload, wanted
from tests.sandboxed import Sandboxed, sandboxed
from tests.storage.cutting_proxy import cutting
from tests.waiting import wait_until

COUNT = 70


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandboxed]:
    """A sandbox whose faults no other module meets."""
    with sandboxed(tmp_path_factory.mktemp("failing")) as running:
        yield running


@dataclass(frozen=True)
class Failing:
    """The sandbox, steered through the endpoint that stays up, with a dataset prefix of the test's own."""

    owner: FixedSource
    control: SandboxControl
    store: ObjectStore
    profile: Profile

    def upload(self, source: Path) -> UploadSummary:
        return upload(self.profile, self.owner, settings_for(source))

    def check_bucket(self, source: Path) -> None:
        assert bucket(self.store, self.profile.dataset_prefix) == wanted(source, settings_for(source).preprocessing)
        check_manifest_is_the_bucket(self.store, self.profile.dataset_prefix)


@pytest.fixture
def failing(server: Sandboxed, request: pytest.FixtureRequest) -> Iterator[Failing]:
    info = server.process.info
    other = msgspec.structs.replace(
        info, path_style_endpoint=info.path_style_endpoint.replace("127.0.0.1", "127.0.0.2")
    )
    control, store = SandboxControl(other), server.store()
    yield Failing(server.owner, control, store, server.profile(request.node.name))
    control.clear_faults()
    store.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "source", train=COUNT - 10, val=10)


def puts(action: Action, **when: object) -> FaultPlan:
    """`action` for writes of samples, by default for the first twelve."""
    chosen = {"times": 12, **when}
    return FaultPlan(rules=[Rule(action=action, method="PUT", **chosen)], seed=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(puts(Error(code="ServiceUnavailable"), probability=0.05, times=None), id="5 % 503"),
        pytest.param(puts(Error(code="InternalError")), id="500"),
        pytest.param(puts(Reset()), id="reset before"),
        pytest.param(puts(LostReply()), id="reset after"),
        pytest.param(puts(WrongCrc()), id="wrong CRC"),
        pytest.param(puts(Error(code="QpsLimitExceeded", qos_delay_ms=300)), id="throttled"),
    ],
)
def test_what_passes_is_retried(failing: Failing, source: Path, plan: FaultPlan) -> None:
    failing.control.set_faults(plan)
    summary = failing.upload(source)
    assert sum(failing.control.status().fault_hits) > 0
    failing.control.clear_faults()
    assert (summary.uploaded, summary.failed, summary.skipped) == (COUNT, 0, 0)
    assert summary.retries > 0
    failing.check_bucket(source)


def test_connections_that_break_off_in_the_middle_of_a_sample(failing: Failing, source: Path) -> None:
    settings = settings_for(source, size=64)  # 12 KB each
    with cutting(failing.profile, cut_after=20_000, requests=True) as (proxy, profile):
        proxy.cuts = 12
        summary = upload(profile, failing.owner, settings)
        assert proxy.cuts == 0
    assert (summary.uploaded, summary.failed) == (COUNT, 0)
    assert summary.retries >= 12
    assert bucket(failing.store, profile.dataset_prefix) == wanted(source, settings.preprocessing)


def test_the_wait_that_oss_requests_is_kept(failing: Failing, tmp_path: Path) -> None:
    failing.control.set_faults(puts(Error(code="QpsLimitExceeded", qos_delay_ms=1500), times=1))
    assert failing.upload(make_pictures(tmp_path / "one", train=1, val=0)).seconds >= 1.5


def test_one_key_that_is_always_refused_costs_that_key_alone(failing: Failing, source: Path) -> None:
    failing.control.set_faults(puts(Error(code="AccessDenied"), key="*/train/ants/8.u8", times=None))
    summary = failing.upload(source)
    assert (summary.uploaded, summary.failed) == (COUNT - 1, 1)
    (failure,) = summary.failures
    assert (failure.path, failure.code) == ("train/ants/8.jpg", "AccessDenied")
    assert failure.request_id
    check_manifest_is_the_bucket(failing.store, failing.profile.dataset_prefix)
    failing.control.clear_faults()
    again = failing.upload(source)
    assert (again.uploaded, again.unchanged, again.failed) == (1, COUNT - 1, 0)
    failing.check_bucket(source)


def test_an_endpoint_that_disappears_ends_it_and_the_next_run_continues(failing: Failing, source: Path) -> None:
    job = create_upload(failing.profile, failing.owner, settings_for(source, parallelism=32, bandwidth=40_000.0))
    job.start()
    wait_until(lambda: job.progress().uploaded > 10)
    failing.control.set_faults(FaultPlan(outages={EndpointKind.STANDARD: 3600.0}))
    job.set_bandwidth(None)
    with pytest.raises(StorageError, match="No answer"):
        job.result(WAIT_S)
    failing.control.clear_faults()
    rest = failing.upload(source)
    assert rest.uploaded + rest.unchanged == COUNT
    assert rest.unchanged >= job.summary().uploaded
    failing.check_bucket(source)


def test_a_key_that_is_rotated_away_ends_it_at_once(failing: Failing, source: Path) -> None:
    key = failing.control.issue_key()
    job = create_upload(failing.profile, FixedSource(key), settings_for(source, bandwidth=40_000.0))
    job.start()
    wait_until(lambda: job.progress().uploaded > 5)
    failing.control.revoke_key(key.access_key_id)
    with pytest.raises(StorageError, match="InvalidAccessKeyId"):
        job.result(WAIT_S)
    assert job.progress().failed == 0
    assert not failing.store.exists(manifest_key(failing.profile.dataset_prefix))
    assert failing.upload(source).unchanged >= job.summary().uploaded


@pytest.mark.parametrize("end", ["the verification", "the manifest"])
def test_trouble_at_the_very_end_leaves_only_the_end_to_do(failing: Failing, source: Path, end: str) -> None:
    denied = Error(code="AccessDenied")
    if end == "the manifest":
        rule = Rule(action=denied, method="PUT", key="*/manifest.json")
    else:
        rule = Rule(action=denied, method="GET", skip=1, key="")  # the first listing looks whether the prefix is empty
    failing.control.set_faults(FaultPlan(rules=[rule]))
    with pytest.raises(StorageError, match="AccessDenied"):
        failing.upload(source)
    assert not failing.store.exists(manifest_key(failing.profile.dataset_prefix))
    failing.control.clear_faults()
    again = failing.upload(source)
    assert (again.uploaded, again.unchanged) == (0, COUNT)
    failing.check_bucket(source)


def test_a_malformed_listing_is_an_error_in_words(failing: Failing, source: Path) -> None:
    failing.control.set_faults(FaultPlan(rules=[Rule(action=MalformedListing(), method="GET", skip=1, key="")]))
    with pytest.raises(ConsoleError) as caught:
        failing.upload(source)
    assert "unexpected" not in str(caught.value)


def throttled_listings(delay_ms: int, times: int | None = None) -> FaultPlan:
    throttled = Error(code="QpsLimitExceeded", status=429, qos_delay_ms=delay_ms)
    return FaultPlan(rules=[Rule(action=throttled, operation="ListObjects", times=times)])


@pytest.mark.parametrize("per_shard", [0, 20])
def test_a_listing_that_is_throttled_for_a_while_is_waited_for(failing: Failing, source: Path, per_shard: int) -> None:
    failing.control.set_faults(throttled_listings(60, times=3 * RETRIES.attempts))
    summary = upload(failing.profile, failing.owner, settings_for(source, per_shard=per_shard))
    assert (summary.uploaded, summary.failed) == (COUNT, 0)
    assert summary.retries >= 3 * RETRIES.attempts
    assert failing.control.status().fault_hits == [3 * RETRIES.attempts]


def test_what_an_upload_waits_for_is_shown_and_a_cancel_ends_the_wait(failing: Failing, source: Path) -> None:
    failing.control.set_faults(throttled_listings(10 * 60_000))
    job = create_upload(failing.profile, failing.owner, settings_for(source))
    job.store._retry = RetryPolicy(patience_s=20 * 60)
    job.start()
    wait_until(lambda: "OSS is throttling while listing oss://" in job.progress().waiting)
    job.cancel()
    assert job.wait(WAIT_S)
    assert job.summary().cancelled
    assert not job.progress().waiting
