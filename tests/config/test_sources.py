from __future__ import annotations

import os
import pickle
import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.credential_sources import (
    FileSource,
    aliyun_file,
    connector_file,
    describe_credentials,
    find_credentials,
    list_sources,
    loose_mode,
    ossutil_file,
    read_connector_file,
    write_connector_file,
)
from ossconsole.config.credentials import Credentials, NoCredentialsError, Secret
from ossconsole.config.errors import SettingsError
from tests.profiles import loopback_profile

SENTINEL = "sentinel-6f1d2c"
OSSUTIL = f"""[default]
accessKeyID = ossutil-default
access-key-secret={SENTINEL}

[profile gpu]
Access_Key_Id=ossutil-gpu
accessKeySecret={SENTINEL}
stsToken=token
"""
ALIYUN = {
    "current": "work",
    "profiles": [
        {"name": "work", "mode": "AK", "access_key_id": "aliyun-work", "access_key_secret": SENTINEL},
        {"name": "sts", "mode": "StsToken", "access_key_id": "s", "access_key_secret": SENTINEL, "sts_token": "t"},
        {"name": "sso", "mode": "CloudSSO"},
    ],
}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def write_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", "from-environment")
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", SENTINEL)
    write_connector_file(Credentials("from-connector", Secret(SENTINEL)))
    write(ossutil_file(), OSSUTIL)
    write(aliyun_file(), msgspec.json.encode(ALIYUN).decode())


def test_the_order_is_environment_connector_ossutil_aliyun(monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(monkeypatch)
    seen = [find_credentials(loopback_profile())().access_key_id]
    monkeypatch.delenv("OSS_ACCESS_KEY_ID")
    seen.append(find_credentials(loopback_profile())().access_key_id)
    connector_file().unlink()
    seen.append(find_credentials(loopback_profile())().access_key_id)
    ossutil_file().unlink()
    seen.append(find_credentials(loopback_profile())().access_key_id)
    assert seen == ["from-environment", "from-connector", "ossutil-default", "aliyun-work"]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("environment", "from-environment"),
        ("connector", "from-connector"),
        ("ossutil", "ossutil-default"),
        ("ossutil:gpu", "ossutil-gpu"),
        ("aliyun", "aliyun-work"),
        ("aliyun:sts", "s"),
    ],
)
def test_a_profile_may_name_its_source(named: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(monkeypatch)
    source = find_credentials(loopback_profile(named))
    assert source().access_key_id == expected
    assert source().access_key_secret == Secret(SENTINEL)
    assert named.partition(":")[0] in source().source


def test_the_tools_own_variables_choose_file_and_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "other", OSSUTIL)
    monkeypatch.setenv("OSS_CONFIG_FILE", str(tmp_path / "other"))
    monkeypatch.setenv("OSS_PROFILE", "gpu")
    found = find_credentials(loopback_profile())()
    assert (found.access_key_id, found.security_token) == ("ossutil-gpu", Secret("token"))


def test_ossutil_1_files_are_read() -> None:
    write(ossutil_file(), f"[Credentials]\nlanguage=EN\naccessKeyID=one\naccessKeySecret={SENTINEL}\n")
    assert find_credentials(loopback_profile("ossutil"))().access_key_id == "one"


def test_without_credentials_the_error_lists_the_sources() -> None:
    with pytest.raises(NoCredentialsError) as caught:
        find_credentials(loopback_profile())
    assert len(caught.value.looked) == 9
    for place in ("OSS_ACCESS_KEY_ID", ".alibabacloud", ".ossutilconfig", ".aliyun", "CREDENTIALS_URI", "ECS RAM role"):
        assert place in caught.value.message
    assert "Setup screen" in caught.value.remedy
    with pytest.raises(NoCredentialsError, match="ossutil nope") as caught:
        find_credentials(loopback_profile("ossutil:nope"))
    assert 'credentials = "ossutil:nope" alone' in caught.value.remedy


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (".alibabacloud/credentials", f'{{"AccessKeyId": "a", "AccessKeySecret": 1, "x": "{SENTINEL}"}}'),
        (".alibabacloud/credentials", f"{SENTINEL}"),
        (".alibabacloud/credentials", f'{{"AccessKeyId": "", "AccessKeySecret": "{SENTINEL}"}}'),
        (
            ".alibabacloud/credentials",
            f'{{"AccessKeyId": "a", "AccessKeySecret": "{SENTINEL}", "Expiration": "{SENTINEL}"}}',
        ),
        (".ossutilconfig", f"{SENTINEL}\n"),
        (".ossutilconfig", "[default]\naccessKeyID=a\n"),
        (".aliyun/config.json", f'["{SENTINEL}"]'),
    ],
)
def test_a_broken_file_is_named_and_its_secret_is_not(path: str, text: str, home: Path) -> None:
    write(home / path, text)
    with pytest.raises(SettingsError, match=Path(path).name) as caught:
        find_credentials(loopback_profile())
    chain: BaseException | None = caught.value
    while chain is not None:
        assert SENTINEL not in f"{chain} {chain!r}"
        chain = chain.__cause__


def test_a_source_that_exists_and_cannot_be_used_is_passed_over_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", "half")
    ended = datetime.now(timezone.utc) - timedelta(hours=1)
    write_connector_file(Credentials("LTAI-ended-key", Secret(SENTINEL), expiration=ended))
    write(ossutil_file(), "[default]\nmode=CloudSSO\n")
    write(aliyun_file(), msgspec.json.encode(ALIYUN).decode())
    shown = describe_credentials(loopback_profile())
    assert shown.startswith("aliy…work from aliyun CLI work")
    for reason in ("OSS_ACCESS_KEY_SECRET", "expired at", "mode CloudSSO"):
        assert reason in shown
    aliyun_file().unlink()
    assert (
        find_credentials(loopback_profile())().access_key_id == "LTAI-ended-key"
    )  # better than nothing: it may be renewed
    connector_file().unlink()
    with pytest.raises(SettingsError, match=r"OSS_ACCESS_KEY_SECRET.*mode CloudSSO"):
        find_credentials(loopback_profile())


def test_the_connector_file_is_for_its_owner_only() -> None:
    path = write_connector_file(Credentials("a", Secret(SENTINEL)))
    assert path == connector_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert loose_mode(path) is None
    write_connector_file(Credentials("b", Secret(SENTINEL)))
    assert [entry.name for entry in path.parent.iterdir()] == ["credentials"]
    path.chmod(0o644)
    assert loose_mode(path) == 0o644


def test_the_connector_file_holds_what_the_connector_reads() -> None:
    end = datetime(2030, 1, 31, 8, 0, tzinfo=timezone.utc)
    path = write_connector_file(Credentials("a", Secret("s"), Secret("t"), end))
    assert msgspec.json.decode(path.read_bytes()) == {
        "AccessKeyId": "a",
        "AccessKeySecret": "s",
        "SecurityToken": "t",
        "Expiration": "2030-01-31T08:00:00Z",
    }
    found = read_connector_file(path)
    assert found is not None
    assert (found.security_token, found.expiration) == (Secret("t"), end)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    write_connector_file(Credentials("a", Secret("s")))
    source = find_credentials(loopback_profile("connector"))
    first = source()
    assert source() is first
    write_connector_file(Credentials("b", Secret("s")))
    assert source().access_key_id == "b"
    connector_file().unlink()
    with pytest.raises(NoCredentialsError):
        source()


def test_ended_credentials_are_read_again_from_the_same_file() -> None:
    ended = datetime.now(timezone.utc) - timedelta(hours=1)
    write_connector_file(Credentials("a", Secret("s"), expiration=ended))
    now = datetime.now(timezone.utc)
    source = FileSource("connector", connector_file(), now=lambda: now)
    first = source()
    now += timedelta(seconds=2)
    assert source() is not first


def test_sources_travel_to_other_processes_without_the_pair() -> None:
    write_connector_file(Credentials("a", Secret(SENTINEL)))
    source = find_credentials(loopback_profile())
    source()
    travelled = pickle.dumps(source)
    assert SENTINEL.encode() not in travelled
    assert pickle.loads(travelled)() == source()


def test_secrets_are_masked_wherever_they_could_show() -> None:
    write_connector_file(Credentials("LTAI5tExampleKeyId", Secret(SENTINEL)))
    source = find_credentials(loopback_profile())
    shown = f"{source} {source!r} {source()} {source()!r} {source().access_key_secret:>20}"
    assert SENTINEL not in shown
    assert "LTAI5tExampleKeyId" not in shown


def test_a_file_source_without_its_file_finds_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoCredentialsError):
        FileSource("connector", tmp_path / "none")()
    assert "OSS_ACCESS_KEY_ID" not in os.environ


def test_the_sources_include_every_tool_and_every_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(monkeypatch)
    found = {str(state.source): state for state in list_sources()}
    ids = [state.credentials.access_key_id for state in found.values() if state.credentials]
    assert ids == [
        "from-environment",
        "from-connector",
        "ossutil-default",
        "ossutil-gpu",
        "aliyun-work",
        "aliyun-work",
        "s",
    ]
    (ecs,) = [state for name, state in found.items() if name.startswith("ECS")]
    assert "metadata service" in ecs.problem


def test_list_sources_continues_after_a_broken_file() -> None:
    write(ossutil_file(), SENTINEL)
    write(aliyun_file(), SENTINEL)
    states = list_sources()
    assert next(state.problem for state in states if "ossutil" in str(state.source)).startswith(str(ossutil_file()))
    assert not any(SENTINEL in state.problem for state in states)
