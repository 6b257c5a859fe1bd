"""The accelerated endpoint on the wire: its cache, its configuration, and the made-up keys of the benchmark bucket."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import oss2
import pytest

from ossconsole.sandbox.accelerator import (
    ZONE_PARAMETER,
    AcceleratorConfig,
    CachedPath,
    default_accelerator,
    encoded_accelerators,
    parse_accelerator,
    stored_accelerators,
)
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.listing import SyntheticKeys
from ossconsole.sandbox.process import SandboxInfo, SandboxProcess, Shaping
from ossconsole.sandbox.replies import OssError
from tests.sandbox.conftest import make_bucket
from tests.sandbox.wire import call

# Caches as by default, but does not wait.
_FAST = [
    "--standard-first-byte-ms=0",
    "--standard-objects-per-s=0",
    "--accelerated-first-byte-ms=0",
    "--synthetic-keys=2500",
]


@pytest.fixture(scope="module")
def caching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with SandboxProcess.start(tmp_path_factory.mktemp("caching"), arguments=_FAST) as running:
        yield running


@pytest.fixture
def info(caching: SandboxProcess) -> SandboxInfo:
    return caching.info


@pytest.fixture
def misses(info: SandboxInfo) -> Any:
    """Returns how many reads missed the cache since the last call."""
    control = SandboxControl(info)
    control.clear_cache()
    before = control.status().cache_misses

    def since() -> int:
        nonlocal before
        now = control.status().cache_misses
        result, before = now - before, now
        return result

    return since


def test_reads_fill_the_cache_and_writes_are_seen(info: SandboxInfo, misses: Any) -> None:
    standard, accelerated = make_bucket(info), make_bucket(info, accelerated=True)
    standard.put_object("a", b"one")
    for expected in (1, 0):
        assert accelerated.get_object("a").read() == b"one"
        assert misses() == expected
    assert standard.get_object("a").read() == b"one"
    assert misses() == 0
    standard.put_object("a", b"two")
    assert accelerated.get_object("a").read() == b"two"
    assert misses() == 1
    standard.delete_object("a")
    assert call(info, "GET", "a", accelerated=True).code == "NoSuchKey"
    SandboxControl(info).clear_cache()
    assert SandboxControl(info).status().cache_bytes == 0


def test_appends_are_seen(info: SandboxInfo) -> None:
    accelerated = make_bucket(info, accelerated=True)
    accelerated.append_object("log", 0, b"one")
    assert accelerated.get_object("log").read() == b"one"
    accelerated.append_object("log", 3, b"two")
    assert accelerated.get_object("log").read() == b"onetwo"


def test_the_speed_of_the_standard_endpoint_is_changed_while_it_runs(tmp_path: Path) -> None:
    with SandboxProcess.start(tmp_path, unshaped=True) as running:
        SandboxControl(running.info).set_standard_speed(20)
        shaping = SandboxControl(running.info).status().shaping
    assert shaping == msgspec.structs.replace(Shaping.none(), standard_objects_per_s=20)


def test_figures_given_beside_unshaped_hold(tmp_path: Path) -> None:
    arguments = ["--put-first-byte-ms=5", "--cache-mb=1"]
    with SandboxProcess.start(tmp_path, unshaped=True, arguments=arguments) as running:
        shaping = SandboxControl(running.info).status().shaping
    assert shaping == msgspec.structs.replace(Shaping.none(), put_first_byte_ms=5, cache_mb=1)


DEFAULT = "<DefaultCachePolicy>write-back</DefaultCachePolicy>"


def configuration(quota: str = "50", paths: str = "", zone: str = "cn-sandbox-a", default: str = DEFAULT) -> bytes:
    return (
        f"<DataAcceleratorConfiguration><AvailableZone>{zone}</AvailableZone><Quota>{quota}</Quota>"
        f"<AcceleratePaths>{default}{paths}</AcceleratePaths></DataAcceleratorConfiguration>"
    ).encode()


def path(name: str, policy: str = "write-back") -> str:
    return f"<Path><Name>{name}</Name><CachePolicy>{policy}</CachePolicy></Path>"


PLAIN = {"dataAccelerator": ""}
VERBOSE = {"dataAccelerator": "", "verbose": ""}


def in_zone(zone: str) -> dict[str, str]:
    return {"dataAccelerator": "", ZONE_PARAMETER: zone}


def test_paths_are_sent_with_verbose_only_and_beside_the_default_policy(info: SandboxInfo) -> None:
    body = configuration(paths=path("warm/", "sync-warmup"))
    assert call(info, "PUT", query=PLAIN, body=body, accelerated=True).status == 200
    basic = ET.fromstring(call(info, "GET", query=PLAIN, accelerated=True).body).find("BasicInfomation")
    assert basic is not None
    assert [child.tag for child in basic] == ["Quota", "AvailableZone", "CreationDate", "QuotaFrozenUntil"]
    found = ET.fromstring(call(info, "GET", query=VERBOSE, accelerated=True).body)
    paths = found.find("BasicInfomation/AcceleratePaths")
    assert paths is not None
    assert [child.tag for child in paths] == ["Path", "DefaultCachePolicy"]
    assert found.findtext("Name") == "127_data-acc"
    assert found.findtext("BasicInfomation/Quota") == "50"
    assert call(info, "GET", query=PLAIN).code == "NotImplemented"


def test_every_zone_has_an_accelerator_of_its_own(info: SandboxInfo) -> None:
    put = configuration(quota="60", zone="cn-sandbox-b")
    assert call(info, "PUT", query=PLAIN, body=put, accelerated=True).status == 200
    found = ET.fromstring(call(info, "GET", query=PLAIN, accelerated=True).body)
    assert [zone.text for zone in found.iterfind("BasicInfomation/AvailableZone")] == ["cn-sandbox-a", "cn-sandbox-b"]
    only = ET.fromstring(call(info, "GET", query=in_zone("cn-sandbox-b"), accelerated=True).body)
    assert [quota.text for quota in only.iterfind("BasicInfomation/Quota")] == ["60"]
    assert call(info, "GET", query=in_zone("cn-sandbox-c"), accelerated=True).code == "NoSuchConfiguration"
    assert call(info, "DELETE", query=PLAIN, accelerated=True).code == "InvalidArgument"
    assert call(info, "DELETE", query=in_zone("cn-sandbox-c"), accelerated=True).code == "NoSuchConfiguration"
    assert call(info, "DELETE", query=in_zone("cn-sandbox-b"), accelerated=True).status == 204
    left = ET.fromstring(call(info, "GET", query=PLAIN, accelerated=True).body)
    assert [zone.text for zone in left.iterfind("BasicInfomation/AvailableZone")] == ["cn-sandbox-a"]


def test_whole_life_on_the_wire(info: SandboxInfo, misses: Any) -> None:
    query = PLAIN
    body = configuration(paths=path("warm/", "sync-warmup") + path("cold/"))
    assert call(info, "PUT", query=query, body=body, accelerated=True).status == 200
    bucket = make_bucket(info, accelerated=True)
    # Warmed by the write, cached on read, and outside the accelerated paths.
    for key, first, second in (("warm/x", 0, 0), ("cold/x", 1, 0), ("other/x", 0, 0)):
        bucket.put_object(key, b"data")
        for expected in (first, second):
            assert bucket.get_object(key).read() == b"data"
            assert misses() == expected, key
    assert SandboxControl(info).status().cache_bytes == 8
    assert call(info, "DELETE", query=in_zone("cn-sandbox-a"), accelerated=True).status == 204
    assert call(info, "GET", query=query, accelerated=True).code == "DataAcceleratorNotFound"
    assert call(info, "DELETE", query=in_zone("cn-sandbox-a"), accelerated=True).code == "DataAcceleratorNotFound"
    assert bucket.get_object("warm/x").read() == b"data"
    assert misses() == 0
    assert call(info, "PUT", query=query, body=configuration(), accelerated=True).status == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (configuration(quota="49"), "InvalidQuota"),
        (configuration(quota="x"), "InvalidQuota"),
        (configuration(zone="cn-elsewhere-a"), "DataAcceleratorAvailableZoneNotSupported"),
        (configuration(paths=path("a", "write-through")), "InvalidCachePathPolicy"),
        (configuration(paths="".join(path(f"p{n}") for n in range(11))), "TooManyAccelerationPolicyPaths"),
        (b"<DataAcceleratorConfiguration/>", "MalformedXML"),
        (configuration(default=""), "MalformedXML"),
        (configuration(default="", paths=path("a/")), "MalformedXML"),
        (configuration(default="<DefaultCachePolicy>never</DefaultCachePolicy>"), "InvalidCachePathPolicy"),
        (configuration(quota="204801"), "InvalidQuota"),
        (configuration(quota="9" * 5000), "InvalidQuota"),
        (configuration(quota="٥٠"), "InvalidQuota"),
    ],
    ids=range(12),
)
def test_refused_configurations(body: bytes, code: str) -> None:
    with pytest.raises(OssError) as caught:
        parse_accelerator(body, (), "cn-sandbox", 0.0)
    assert caught.value.code == code


def test_a_quota_beyond_the_limit_has_its_documented_ec() -> None:
    with pytest.raises(OssError) as caught:
        parse_accelerator(configuration(quota="1000000000"), (), "cn-sandbox", 0.0)
    assert caught.value.ec == "0024-00000801"


@pytest.mark.parametrize(("region", "zone"), [("ap-southeast-1", "ap-southeast-1c"), ("cn-hangzhou", "cn-hangzhou-j")])
def test_zones_have_the_forms_of_alibabas(region: str, zone: str) -> None:
    assert parse_accelerator(configuration(zone=zone), (), region, 0.0).zone == zone


def test_a_folder_of_an_older_version_keeps_its_accelerator() -> None:
    old = (
        b'{"zone":"z","quota_gb":50,"default_policy":null,"paths":[{"name":"a/","policy":"write-back"}],"created":1.0}'
    )
    (found,) = stored_accelerators(old)
    assert (found.default_policy, found.paths[0].name) == ("write-back", "a/")
    assert stored_accelerators(encoded_accelerators([found])) == (found,)
    assert encoded_accelerators([]) is None


def test_quota_is_frozen_for_an_hour() -> None:
    made = parse_accelerator(configuration(quota="100"), (), "cn-sandbox", 1000.0)
    with pytest.raises(OssError, match="DataAcceleratorQuotaFrozen"):
        parse_accelerator(configuration(quota="200"), [made], "cn-sandbox", 4599.0)
    assert parse_accelerator(configuration(quota="100", paths=path("a")), [made], "cn-sandbox", 1001.0).paths
    assert parse_accelerator(configuration(quota="200"), [made], "cn-sandbox", 4600.0).quota_gb == 200


def test_policy_of_a_key() -> None:
    assert default_accelerator("cn-sandbox", 0.0).policy("any/key") == "write-back"
    paths = (CachedPath("a/", "sync-warmup"), CachedPath("b", "write-back"))
    some = AcceleratorConfig(zone="z", quota_gb=50, default_policy="write-back", paths=paths, created=0.0)
    assert [some.policy(key) for key in ("a/x", "bx", "c")] == ["sync-warmup", "write-back", None]


def test_synthetic_keys_are_listed_among_real_ones(info: SandboxInfo) -> None:
    bucket = make_bucket(info)
    for key in ("synthetic", "synthetic/sample-00001000.x", "synthetic0"):
        bucket.put_object(key, b"")
    keys = [entry.key for entry in oss2.ObjectIteratorV2(bucket, prefix="synthetic", max_keys=1000)]
    assert len(keys) == 2503
    assert keys == sorted(keys)
    assert keys[0] == "synthetic"
    assert keys[1002] == "synthetic/sample-00001000.x"
    folders = list(oss2.ObjectIterator(bucket, prefix="synth", delimiter="/"))
    assert [entry.key for entry in folders] == ["synthetic", "synthetic/", "synthetic0"]
    for key in ("synthetic", "synthetic/sample-00001000.x", "synthetic0"):
        bucket.delete_object(key)


def test_any_part_of_a_million_keys_is_found_quickly() -> None:
    keys = SyntheticKeys(1_000_000)
    page = keys.scan(b"synthetic/sample-00999998.pt", b"", 1000, inclusive=False)
    assert [stored.key for stored in page] == ["synthetic/sample-00999999.pt"]
    assert keys.scan(b"", b"synthetic/", 10, inclusive=True) == []
    assert len(keys.scan(b"synthetic/", b"synthetic0", 10, inclusive=True)) == 10
    assert keys.scan(b"synthetic/sample-00000005.pt", b"", 1, inclusive=True) == keys.scan(
        b"synthetic/sample-00000004.pt", b"", 1, inclusive=False
    )
