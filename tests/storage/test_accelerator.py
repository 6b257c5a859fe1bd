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
    delete_accelerator,
    describe_changes,
    other_accelerators,
    read_accelerator,
    read_accelerators,
    save_accelerator,
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


def save(store: ObjectStore, wanted: Accelerator) -> Accelerator:
    """Saves it over what is there, and returns what is there then."""
    save_accelerator(store, wanted, present=next(iter(read_accelerators(store, wanted.zone)), None))
    (found,) = read_accelerators(store, wanted.zone)
    return found


def test_create_read_change_and_delete(tmp_path: Path) -> None:
    with sandboxed(tmp_path / "sandbox") as found:
        accelerated = found.store(EndpointKind.ACCELERATED)
        delete_accelerator(accelerated, ZONE)
        created = save(accelerated, Accelerator(zone=ZONE, quota_gb=50, paths=PATHS))
        assert (created.zone, created.quota_gb, created.paths) == (ZONE, 50, PATHS)
        assert created.name == "127_data-acc"
        assert created.created > 1.5e9
        assert created.frozen_until == pytest.approx(created.created + 3600, abs=1)
        changed = save(accelerated, Accelerator(zone=ZONE, quota_gb=50, policy=ON_WRITE))
        assert (changed.paths, changed.policy, changed.created) == ((), ON_WRITE, created.created)
        delete_accelerator(accelerated, ZONE)
        assert read_accelerator(accelerated) is None
        check = accelerator_check(accelerated)
        assert check.status is CheckStatus.WARN
        assert "has no accelerator" in check.detail


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (
            Accelerator(zone=ZONE, quota_gb=50, paths=tuple(AcceleratedPath(f"{n}/") for n in range(11))),
            "TooManyAccelerationPolicyPaths",
        ),
    ],
)
def test_what_oss_refuses_arrives_with_its_code(store: ObjectStore, wanted: Accelerator, code: str) -> None:
    with pytest.raises(StorageError) as caught:
        save(store, wanted)
    assert caught.value.code == code
    assert caught.value.request_id


def test_the_size_cannot_be_changed_twice_in_an_hour(store: ObjectStore) -> None:
    save(store, Accelerator(zone=ZONE, quota_gb=60))
    with pytest.raises(StorageError) as caught:
        save(store, Accelerator(zone=ZONE, quota_gb=70))
    assert caught.value.code == "DataAcceleratorQuotaFrozen"
    assert "hour" in caught.value.remedy


def test_a_size_beyond_the_limit_has_a_remedy(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossconsole.storage.accelerator.MAX_GB", 10**10)
    with pytest.raises(StorageError) as caught:
        save(store, Accelerator(zone=ZONE, quota_gb=10**9))
    assert (caught.value.code, caught.value.ec) == ("InvalidQuota", "0024-00000801")
    assert "beyond the largest" in caught.value.remedy


@pytest.mark.parametrize(
    "wanted",
    [
        Accelerator(zone=ZONE, quota_gb=49),
        Accelerator(zone=ZONE, quota_gb=204_801),
        Accelerator(zone="", quota_gb=50),
        Accelerator(zone="cn-elsewhere-a", quota_gb=50),
        Accelerator(zone=ZONE, quota_gb=50, paths=(AcceleratedPath("a/", "never"),)),
    ],
)
def test_what_cannot_be_right_is_not_sent(store: ObjectStore, wanted: Accelerator) -> None:
    before = read_accelerator(store)
    with pytest.raises(SettingsError):
        save_accelerator(store, wanted, present=None)
    assert read_accelerator(store) == before


def test_a_change_keeps_a_policy_that_this_program_does_not_know(store: ObjectStore) -> None:
    odd = Accelerator(zone=ZONE, quota_gb=50, paths=(AcceleratedPath("a/", "weekly"),))
    with pytest.raises(ConsoleError, match="changed by someone else"):  # so the policy was not the reason
        save_accelerator(store, odd, present=odd)


def test_a_configuration_that_someone_else_changed_is_not_replaced(store: ObjectStore) -> None:
    read = _present(store)
    theirs = save(store, msgspec.structs.replace(read, paths=(AcceleratedPath("theirs/", ON_WRITE),)))
    with pytest.raises(ConsoleError, match="changed by someone else"):
        save_accelerator(store, msgspec.structs.replace(read, paths=()), present=read)
    with pytest.raises(ConsoleError, match="changed by someone else"):
        save_accelerator(store, Accelerator(zone=ZONE, quota_gb=read.quota_gb), present=None)
    assert read_accelerator(store) == theirs


def test_paths_that_were_not_read_are_not_replaced(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossconsole.storage.accelerator._request", lambda *_: reply(basic(paths="")))
    (found,) = read_accelerators(store)
    assert not found.paths_known
    assert not found.covers("data")
    assert "unknown" in accelerator_warnings(found, "data")[0]
    with pytest.raises(ConsoleError, match="a change would delete them"):
        save_accelerator(store, msgspec.structs.replace(found, quota_gb=300), present=found)


def basic(zone: str = "cn-hangzhou-j", paths: str = "<AcceleratePaths/>", frozen: str = "") -> str:
    return f"<BasicInfomation><Quota>200</Quota><AvailableZone>{zone}</AvailableZone>{paths}{frozen}</BasicInfomation>"


def reply(*inside: str) -> bytes:
    return f"<DataAccelerator><Name>b_data-acc</Name>{''.join(inside)}</DataAccelerator>".encode()


@pytest.mark.parametrize(
    "body",
    [
        reply(basic("z-a"), basic("z-b")),
        b"<DataAccelerators>" + reply(basic("z-b")) + reply(basic("z-a")) + b"</DataAccelerators>",
        reply("<Zones>", basic("z-a"), basic("z-b").replace("Infomation", "Information"), "</Zones>"),
        reply(basic("z-a"), basic("z-b")).replace(b"<DataAccelerator>", b"<DataAccelerator xmlns='http://x/'>"),
    ],
    ids=range(4),
)
def test_several_zones_are_read_in_any_nesting(
    store: ObjectStore, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossconsole.storage.accelerator._request", lambda *_: body)
    assert [found.zone for found in read_accelerators(store)] == ["z-a", "z-b"]
    assert [found.zone for found in read_accelerators(store, "z-b")] == ["z-b"]
    assert [found.zone for found in other_accelerators(store, "z-b")] == ["z-a"]
    with pytest.raises(ConsoleError, match="z-a and z-b"):
        read_accelerator(store)


@pytest.mark.parametrize("name", ["QuotaFrozenUntil", "QuotaFrozenUtil"])
def test_both_spellings_of_the_end_of_the_freeze_are_read(
    store: ObjectStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = reply(basic(frozen=f"<{name}>1751017020624</{name}>"))
    monkeypatch.setattr("ossconsole.storage.accelerator._request", lambda *_: body)
    (found,) = read_accelerators(store)
    assert found.frozen_until == 1751017020.624


def test_the_zone_of_the_endpoint_is_read(running: Sandboxed, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = "https://cn-hangzhou-k-internal.oss-data-acc.aliyuncs.com"
    profile = msgspec.structs.replace(running.process.profile(), accelerated_endpoint=endpoint, region="cn-hangzhou")
    elsewhere = ObjectStore(profile, running.owner, EndpointKind.ACCELERATED)
    monkeypatch.setattr("ossconsole.storage.accelerator._request", lambda *_: reply(basic()))
    assert read_accelerator(elsewhere) is None
    check = accelerator_check(elsewhere)
    assert "in cn-hangzhou-k" in check.detail
    assert "It has one in cn-hangzhou-j" in check.remedy
    both = reply(basic("cn-hangzhou-k"), basic())
    monkeypatch.setattr("ossconsole.storage.accelerator._request", lambda *_: both)
    found = read_accelerator(elsewhere)
    assert found is not None
    assert found.zone == "cn-hangzhou-k"
    assert "Billed as well: 200 GB in cn-hangzhou-j." in accelerator_check(elsewhere).detail


def test_a_key_that_may_not_manage_is_refused(running: Sandboxed) -> None:
    limited = running.store(EndpointKind.ACCELERATED, key="read-only")
    with pytest.raises(StorageError) as caught:
        delete_accelerator(limited, ZONE)
    assert caught.value.code == "AccessDenied"
    assert "oss:DeleteBucketDataAccelerator" in caught.value.remedy


@pytest.mark.parametrize(
    ("place", "names_a_zone"), [("cn-hangzhou", True), ("cn-hangzhou-j", False)], ids=["region", "zone"]
)
def test_an_endpoint_of_a_region_that_refuses_the_call_is_named(
    running: Sandboxed, place: str, names_a_zone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise StorageError("NotImplemented.", code="NotImplemented", status=501, remedy="Try again.")

    endpoint = f"https://{place}-internal.oss-data-acc.aliyuncs.com"
    profile = msgspec.structs.replace(running.process.profile(), accelerated_endpoint=endpoint, region="cn-hangzhou")
    store = ObjectStore(profile, running.owner, EndpointKind.ACCELERATED)
    monkeypatch.setattr(ObjectStore, "call", refuse)
    remedy = accelerator_check(store).remedy
    assert ("such as https://cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com" in remedy) is names_a_zone


def test_a_reply_that_is_not_an_accelerator_is_an_error(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossconsole.storage.accelerator._request", lambda *_: b"<DataAccelerator/>")
    with pytest.raises(ConsoleError, match="cannot be read"):
        read_accelerator(store)


def accelerator(*paths: str, quota_gb: int = 500) -> Accelerator:
    return Accelerator(zone=ZONE, quota_gb=quota_gb, paths=tuple(AcceleratedPath(path) for path in paths))


def test_a_path_whose_policy_oss_does_not_know_has_no_effect() -> None:
    odd = msgspec.structs.replace(accelerator(), paths=(AcceleratedPath("data/", "weekly"),))
    assert not odd.covers_part_of("data")


def test_changes_are_named_with_old_and_new_value() -> None:
    present = Accelerator(zone=ZONE, quota_gb=1024, paths=(AcceleratedPath("a/", ON_WRITE), AcceleratedPath("b/")))
    assert describe_changes(present, present) == []
    bigger = msgspec.structs.replace(present, quota_gb=2048)
    assert describe_changes(present, bigger) == [
        "size: 1,024 → 2,048 GB",
        "price: CNY 1.00 → 1.99 per hour (estimated)",
        "documented peak: 300 → 600 MB/s",
    ]
    assert "lost: what is cached beyond 1,024 GB" in describe_changes(bigger, present)
    small = msgspec.structs.replace(present, quota_gb=100)
    assert "documented peak: 300 MB/s, as before" in describe_changes(small, present)
    other = msgspec.structs.replace(present, paths=(AcceleratedPath("a/"), AcceleratedPath("c/")))
    assert describe_changes(present, other) == [
        "no longer cached: b/",
        "cached from now on: c/ (write-back)",
        "a/: sync-warmup → write-back",
    ]
    whole = msgspec.structs.replace(present, paths=())
    (text,) = describe_changes(present, whole)
    assert text == "caches: a/ (sync-warmup), b/ (write-back) → the whole bucket (write-back)"
    (text,) = describe_changes(whole, msgspec.structs.replace(whole, policy=ON_WRITE))
    assert text == "the whole bucket: write-back → sync-warmup"


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
    assert "not in the accelerated paths (other/ (write-back))" in texts[0]
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
    save(store, msgspec.structs.replace(_present(store), paths=(AcceleratedPath("dataset/", ON_READ),)))
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
