from __future__ import annotations

import pytest

from ossconsole.config.endpoints import (
    EndpointKind,
    HostInfo,
    HostKind,
    candidates,
    classify,
    is_zone_of,
    without_bucket,
)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("oss-cn-hangzhou-internal.aliyuncs.com", HostInfo(HostKind.INTERNAL, "cn-hangzhou")),
        ("oss-cn-hangzhou.aliyuncs.com", HostInfo(HostKind.PUBLIC, "cn-hangzhou")),
        ("oss-ap-southeast-1.aliyuncs.com", HostInfo(HostKind.PUBLIC, "ap-southeast-1")),
        ("cn-hangzhou.oss.aliyuncs.com", HostInfo(HostKind.DUAL_STACK, "cn-hangzhou")),
        ("oss-accelerate.aliyuncs.com", HostInfo(HostKind.TRANSFER_ACCELERATION)),
        ("oss-accelerate-overseas.aliyuncs.com", HostInfo(HostKind.TRANSFER_ACCELERATION)),
        (
            "cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com",
            HostInfo(HostKind.ACCELERATOR, "cn-hangzhou", "cn-hangzhou-j"),
        ),
        (
            "ap-southeast-1c-internal.oss-data-acc.aliyuncs.com",
            HostInfo(HostKind.ACCELERATOR, "ap-southeast-1", "ap-southeast-1c"),
        ),
        (
            "us-east-1b-internal.oss-data-acc.aliyuncs.com",
            HostInfo(HostKind.ACCELERATOR, "us-east-1", "us-east-1b"),
        ),
        (
            "cn-hongkong-d-internal.oss-data-acc.aliyuncs.com",
            HostInfo(HostKind.ACCELERATOR, "cn-hongkong", "cn-hongkong-d"),
        ),
        ("cn-hangzhou-internal.oss-data-acc.aliyuncs.com", HostInfo(HostKind.ACCELERATOR, "cn-hangzhou")),
        ("ap-southeast-1-internal.oss-data-acc.aliyuncs.com", HostInfo(HostKind.ACCELERATOR, "ap-southeast-1")),
        ("oss-cache-cn-beijing-h.aliyuncs.com", HostInfo(HostKind.ACCELERATOR, "cn-beijing", "cn-beijing-h")),
        ("127.0.0.1:8080", HostInfo(HostKind.LOOPBACK)),
        ("0.0.1:8080", HostInfo(HostKind.LOOPBACK)),
        ("data.example.com", HostInfo(HostKind.CUSTOM)),
    ],
)
def test_classify(host: str, expected: HostInfo) -> None:
    assert classify(f"https://{host}") == expected
    assert classify(f"http://{host.upper()}") == expected
    assert expected.note


def test_only_the_regions_own_network_reaches_internal_and_accelerated() -> None:
    inside = {kind for kind in HostKind if HostInfo(kind).inside_only}
    assert inside == {HostKind.INTERNAL, HostKind.ACCELERATOR}


@pytest.mark.parametrize("region", ["cn-hangzhou", "ap-southeast-1", "eu-central-1"])
def test_every_candidate_has_its_region(region: str) -> None:
    found = candidates(region)
    assert {candidate.host.region for candidate in found} == {region}
    assert found[0].host.kind is HostKind.INTERNAL
    accelerated = [candidate for candidate in found if candidate.use is EndpointKind.ACCELERATED]
    assert accelerated[-1].host.zone == ""
    assert all(candidate.host.kind is HostKind.ACCELERATOR for candidate in accelerated)


def test_a_region_that_is_being_typed_may_hold_anything() -> None:
    assert all(candidate.host.region == "" for candidate in candidates("[x") + candidates("a]"))


def test_documented_zones_come_first() -> None:
    zones = [c.host.zone for c in candidates("ap-southeast-1") if c.use is EndpointKind.ACCELERATED]
    assert zones == ["ap-southeast-1c", ""]


@pytest.mark.parametrize(
    ("zone", "region", "expected"),
    [
        ("cn-hangzhou-j", "cn-hangzhou", True),
        ("cn-hangzhou-q", "cn-hangzhou", True),
        ("us-east-1b", "us-east-1", True),
        ("cn-hongkong-d", "cn-hongkong", True),
        ("ap-southeast-1c", "ap-southeast-1", True),
        ("cn-hangzhou", "cn-hangzhou", False),
        ("cn-shanghai-g", "cn-hangzhou", False),
        ("", "cn-hangzhou", False),
    ],
)
def test_any_well_formed_zone_of_the_region_is_a_zone(zone: str, region: str, expected: bool) -> None:
    assert is_zone_of(zone, region) is expected


def test_a_bucket_in_front_of_a_known_host_is_taken_off() -> None:
    assert without_bucket("https://abc.oss-cn-hangzhou.aliyuncs.com", "abc") == "https://oss-cn-hangzhou.aliyuncs.com"
    assert without_bucket("https://abc.example.com", "abc") == "https://abc.example.com"
    assert without_bucket("https://oss-cn-hangzhou.aliyuncs.com", "oss") == "https://oss-cn-hangzhou.aliyuncs.com"
