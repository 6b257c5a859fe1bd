from __future__ import annotations

import msgspec
import pytest

from ossconsole.config.endpoints import sends_in_clear
from ossconsole.config.errors import SettingsError
from ossconsole.config.profiles import Profile, Settings
from ossconsole.config.resolve import Origin, OriginKind, Resolution, overlay, resolve
from tests.profiles import HANGZHOU

SETTINGS = Settings().with_profile(HANGZHOU)
ACTIVE = SETTINGS.activated("hangzhou")


def resolved(settings: Settings, flags: dict[str, str], environ: dict[str, str]) -> Resolution:
    found = resolve(settings, flags, environ)
    assert found is not None
    return found


def test_nothing_given_means_the_sandbox() -> None:
    assert resolve(Settings(), {}, {}) is None
    assert resolve(SETTINGS, {}, {}) is None
    assert resolve(Settings(), {}, {"OSS_REGION": "cn-hangzhou"}) is None


def test_the_sandbox_can_be_selected() -> None:
    assert resolve(ACTIVE, {"profile": "sandbox"}, {}) is None
    assert resolve(ACTIVE, {}, {"OSSCONSOLE_PROFILE": "sandbox"}) is None


def test_the_active_profile_is_used_as_it_is() -> None:
    found = resolved(ACTIVE, {}, {})
    assert found.profile == HANGZHOU
    assert found.origins["bucket"] == Origin(OriginKind.PROFILE, "hangzhou")


def test_flag_before_environment_before_profile() -> None:
    environ = {"OSSCONSOLE_BUCKET": "from-environment"}
    found = resolved(ACTIVE, {"bucket": "from-flag"}, environ)
    assert (found.profile.bucket, str(found.origins["bucket"])) == ("from-flag", "flag --bucket")
    found = resolved(ACTIVE, {}, environ)
    assert (found.profile.bucket, str(found.origins["bucket"])) == ("from-environment", "environment OSSCONSOLE_BUCKET")


def test_the_profile_flag_beats_its_variable() -> None:
    settings = SETTINGS.with_profile(
        Profile(name="b", region="cn-beijing", bucket="bbb", standard_endpoint="oss-cn-beijing.aliyuncs.com")
    )
    assert resolved(settings, {"profile": "b"}, {"OSSCONSOLE_PROFILE": "hangzhou"}).profile.name == "b"
    assert resolved(settings, {}, {"OSSCONSOLE_PROFILE": "hangzhou"}).profile.name == "hangzhou"


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="does not exist") as caught:
        resolve(SETTINGS, {"profile": "hangzou"}, {})
    assert "environment" not in caught.value.message
    assert "'hangzhou'" in caught.value.remedy
    with pytest.raises(SettingsError, match=r"\(from environment OSSCONSOLE_PROFILE\)") as caught:
        resolve(SETTINGS, {}, {"OSSCONSOLE_PROFILE": "hangzou"})
    assert "'hangzhou'" in caught.value.remedy


def test_region_and_standard_endpoint_are_derived() -> None:
    accelerated = "cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com"
    found = resolved(Settings(), {"bucket": "abc", "accelerated_endpoint": accelerated}, {})
    assert found.profile.region == "cn-hangzhou"
    assert found.profile.standard_endpoint == "https://oss-cn-hangzhou-internal.aliyuncs.com"
    assert found.profile.accelerated_endpoint == f"https://{accelerated}"
    assert str(found.origins["region"]) == "default from the accelerated endpoint"
    assert found.origins["standard_endpoint"].kind is OriginKind.DEFAULT


def test_transfer_acceleration_has_no_region() -> None:
    with pytest.raises(SettingsError, match="region is missing"):
        resolve(Settings(), {"bucket": "abc", "standard_endpoint": "oss-accelerate.aliyuncs.com"}, {})


def test_a_place_without_a_bucket_is_an_error() -> None:
    with pytest.raises(SettingsError, match="bucket is missing") as caught:
        resolve(Settings(), {"region": "cn-hangzhou"}, {})
    assert caught.value.remedy.endswith("hyphens: --bucket, or OSSCONSOLE_BUCKET.")


def test_a_bad_value_names_where_it_came_from() -> None:
    with pytest.raises(SettingsError, match="from environment OSSCONSOLE_BUCKET"):
        resolve(ACTIVE, {}, {"OSSCONSOLE_BUCKET": "No Bucket"})
    with pytest.raises(SettingsError, match="from flag --standard-endpoint"):
        resolve(Settings(), {"bucket": "abc", "region": "cn-hangzhou", "standard_endpoint": "https://a b"}, {})


def test_an_endpoint_of_another_region_is_refused_where_both_are_known() -> None:
    flags = {"bucket": "abc", "region": "cn-hangzhou", "standard_endpoint": "oss-cn-beijing.aliyuncs.com"}
    with pytest.raises(SettingsError, match=r"is in cn-beijing, .* \(from flag --standard-endpoint\)"):
        resolve(Settings(), flags, {})
    saved = msgspec.convert({"name": "a", **flags}, Profile)
    assert resolved(Settings(profiles={"a": saved}), {"profile": "a"}, {}).profile.region == "cn-hangzhou"
    finance = {**flags, "region": "cn-hangzhou-finance", "standard_endpoint": "oss-cn-hzjbp-a-internal.aliyuncs.com"}
    assert resolved(Settings(), finance, {}).profile.region == "cn-hangzhou-finance"


def test_a_region_that_contradicts_the_endpoint_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"cn-beijing \(from environment OSS_REGION\)"):
        resolve(ACTIVE, {}, {"OSS_REGION": "cn-beijing"})
    endpoint = "https://oss-cn-beijing-internal.aliyuncs.com"
    found = resolved(ACTIVE, {}, {"OSS_REGION": "cn-beijing", "OSS_ENDPOINT": endpoint})
    assert found.profile.standard_endpoint == endpoint


def test_a_prefix_may_be_the_uri_of_a_folder_of_the_bucket() -> None:
    found = overlay(HANGZHOU, {"dataset_prefix": f"oss://{HANGZHOU.bucket}/mine/"}, {})
    assert found.profile.dataset_prefix == "mine"
    with pytest.raises(SettingsError, match=rf"oss://another/mine is not in the bucket {HANGZHOU.bucket} \(from flag"):
        overlay(HANGZHOU, {"dataset_prefix": "oss://another/mine"}, {})


def test_the_sandboxs_prefixes_can_be_replaced() -> None:
    found = overlay(HANGZHOU, {"dataset_prefix": "mine/"}, {"OSSCONSOLE_CHECKPOINT_PREFIX": "ckpt"})
    assert (found.profile.dataset_prefix, found.profile.checkpoint_prefix) == ("mine", "ckpt")
    assert str(found.origins["bucket"]) == "sandbox"
    assert str(found.origins["dataset_prefix"]) == "flag --dataset-prefix"


@pytest.mark.parametrize("kind", ["standard", "accelerated"])
def test_plain_http_to_another_machine_is_refused_until_somebody_agrees(kind: str) -> None:
    flags = {f"{kind}_endpoint": "http://oss.example.com:8080"}
    with pytest.raises(SettingsError, match=f"The {kind} endpoint http://oss.example.com:8080 has no TLS") as caught:
        resolve(ACTIVE, flags, {})
    assert "https://oss.example.com:8080" in caught.value.remedy
    assert "--plain-http allowed" in caught.value.remedy
    resolved(ACTIVE, {**flags, "plain_http": "allowed"}, {})
    resolved(ACTIVE, flags, {"OSSCONSOLE_PLAIN_HTTP": "allowed"})
    agreed = SETTINGS.with_profile(msgspec.structs.replace(HANGZHOU, plain_http="allowed")).activated("hangzhou")
    resolved(agreed, flags, {})
    with pytest.raises(SettingsError, match="plain_http cannot be 'yes'"):
        resolve(ACTIVE, {"plain_http": "yes"}, {})


@pytest.mark.parametrize(
    ("bucket", "endpoint", "clear"),
    [
        ("127", "http://0.0.1:9000", False),
        ("data", "http://127.0.0.1:9000", False),
        ("data", "http://localhost", False),
        ("data", "http://oss.localhost", False),
        ("data", "https://oss-cn-hangzhou.aliyuncs.com", False),
        ("data", "http://oss-cn-hangzhou-internal.aliyuncs.com", True),
        ("128", "http://0.0.1:9000", True),
        ("data", "http://127.0.0.1.example.com", True),
        ("data", "http://10.0.0.7", True),
        ("data", "http://notlocalhost", True),
    ],
)
def test_what_leaves_the_machine_in_clear(bucket: str, endpoint: str, clear: bool) -> None:
    assert sends_in_clear(bucket, endpoint) is clear
