"""The accelerator's three calls through a real server, and what is said about one before it is relied on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.checks import CheckStatus
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.storage.accelerator import (
    ON_READ,
    ON_WRITE,
    AcceleratedPath,
    Accelerator,
    accelerator_warnings,
    cost_estimate,
    create_accelerator,
    delete_accelerator,
    read_accelerator,
)
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.probe.report import accelerator_check
from tests.sandboxed import Sandboxed, sandboxed

ZONE = "cn-sandbox-a"
PATHS = (AcceleratedPath("dataset/"), AcceleratedPath("hot/", ON_WRITE))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandboxed]:
    with sandboxed(tmp_path_factory.mktemp("accelerator")) as found:
        yield found


@pytest.fixture
def store(running: Sandboxed) -> ObjectStore:
    return running.store(EndpointKind.ACCELERATED)


def test_create_read_change_and_delete(tmp_path: Path) -> None:
    with sandboxed(tmp_path / "sandbox") as found:
        accelerated = found.store(EndpointKind.ACCELERATED)
        create_accelerator(accelerated, Accelerator(zone=ZONE, quota_gb=50, paths=PATHS))
        created = read_accelerator(accelerated)
        assert created is not None
        assert (created.zone, created.quota_gb, created.paths) == (ZONE, 50, PATHS)
        assert created.name == "127_data-acc"
        assert created.created > 1.5e9
        create_accelerator(accelerated, Accelerator(zone=ZONE, quota_gb=50, policy=ON_WRITE))
        changed = read_accelerator(accelerated)
        assert changed is not None
        assert (changed.paths, changed.policy, changed.created) == ((), ON_WRITE, created.created)
        delete_accelerator(accelerated)
        assert read_accelerator(accelerated) is None
        check = accelerator_check(accelerated)
        assert check.status is CheckStatus.WARN
        assert "has no accelerator" in check.detail


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (Accelerator(zone="cn-elsewhere-a", quota_gb=50), "DataAcceleratorAvailableZoneNotSupported"),
        (
            Accelerator(zone=ZONE, quota_gb=50, paths=tuple(AcceleratedPath(f"{n}/") for n in range(11))),
            "TooManyAccelerationPolicyPaths",
        ),
    ],
)
def test_what_oss_refuses_arrives_with_its_code(store: ObjectStore, wanted: Accelerator, code: str) -> None:
    with pytest.raises(StorageError) as caught:
        create_accelerator(store, wanted)
    assert caught.value.code == code
    assert caught.value.request_id


def test_the_size_cannot_be_changed_twice_in_an_hour(store: ObjectStore) -> None:
    create_accelerator(store, Accelerator(zone=ZONE, quota_gb=60))
    with pytest.raises(StorageError) as caught:
        create_accelerator(store, Accelerator(zone=ZONE, quota_gb=70))
    assert caught.value.code == "DataAcceleratorQuotaFrozen"
    assert "hour" in caught.value.remedy


@pytest.mark.parametrize(
    "wanted",
    [
        Accelerator(zone=ZONE, quota_gb=49),
        Accelerator(zone=ZONE, quota_gb=204_801),
        Accelerator(zone="", quota_gb=50),
        Accelerator(zone=ZONE, quota_gb=50, paths=(AcceleratedPath("a/", "never"),)),
    ],
)
def test_what_cannot_be_right_is_not_sent(store: ObjectStore, wanted: Accelerator) -> None:
    before = read_accelerator(store)
    with pytest.raises(SettingsError):
        create_accelerator(store, wanted)
    assert read_accelerator(store) == before


def test_a_key_that_may_not_manage_is_refused(running: Sandboxed) -> None:
    limited = running.store(EndpointKind.ACCELERATED, key="read-only")
    with pytest.raises(StorageError) as caught:
        create_accelerator(limited, Accelerator(zone=ZONE, quota_gb=50))
    assert caught.value.code == "AccessDenied"


def test_an_answer_that_is_no_accelerator_is_told(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossconsole.storage.accelerator._request", lambda *_: b"<DataAccelerator/>")
    with pytest.raises(ConsoleError, match="cannot be read"):
        read_accelerator(store)


def accelerator(*paths: str, quota_gb: int = 500) -> Accelerator:
    return Accelerator(zone=ZONE, quota_gb=quota_gb, paths=tuple(AcceleratedPath(path) for path in paths))


@pytest.mark.parametrize(
    ("paths", "covered", "part"),
    [
        ((), True, True),
        (("dataset/",), True, True),
        (("/dataset/imagenet/",), True, True),
        (("dataset/imagenet/train/",), False, True),
        (("dataset/imagenet2/",), False, False),
        (("other/",), False, False),
    ],
)
def test_which_prefixes_are_cached(paths: tuple[str, ...], covered: bool, part: bool) -> None:
    found = accelerator(*paths)
    assert found.covers("dataset/imagenet") is covered
    assert found.covers_part_of("dataset/imagenet") is part


def test_what_speaks_against_it() -> None:
    assert len(accelerator_warnings(accelerator(), "data", 499 * 10**9)) == 1
    texts = accelerator_warnings(accelerator("other/"), "data", 501 * 10**9)
    assert "not in the accelerated paths (other/)" in texts[0]
    assert "larger than the cache" in texts[1]
    assert "billed" in texts[2]
    assert "only in part" in accelerator_warnings(accelerator("data/train/"), "data")[0]


def test_the_cost_is_an_estimate_and_says_so() -> None:
    text = cost_estimate(accelerator(quota_gb=500))
    assert text.startswith("estimated CNY 0.49 per hour, CNY 350 per month, also while idle")
    assert accelerator(quota_gb=500).peak_mb_per_s == 300
    assert accelerator(quota_gb=2048).peak_mb_per_s == 600


def test_the_check_warns_of_a_prefix_that_is_not_cached(running: Sandboxed) -> None:
    profile = msgspec.structs.replace(running.process.profile(), dataset_prefix="elsewhere")
    store = ObjectStore(profile, running.owner, EndpointKind.ACCELERATED)
    create_accelerator(store, msgspec.structs.replace(_present(store), paths=(AcceleratedPath("dataset/", ON_READ),)))
    check = accelerator_check(store)
    assert check.status is CheckStatus.WARN
    assert "elsewhere/ is not in the accelerated paths" in check.detail
    good = accelerator_check(running.store(EndpointKind.ACCELERATED))
    assert good.status is CheckStatus.OK
    assert "billed" in good.detail


def _present(store: ObjectStore) -> Accelerator:
    found = read_accelerator(store)
    assert found is not None
    return found
