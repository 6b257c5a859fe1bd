from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ossconsole.cli.app import ossconsole
from ossconsole.cli.config import config
from ossconsole.cli.output import run_group
from ossconsole.config.credential_sources import find_credentials, write_connector_file
from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import load_settings

SECRET = "planted-secret-that-must-never-show"


def run(*arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(config, arguments, input=text, catch_exceptions=False)


def init(*extra: str) -> Result:
    return run("init", "--region", "cn-hangzhou", "--bucket", "training-data", *extra)


def test_path(home: Path) -> None:
    assert run("path").output.split() == [
        str(home / "config" / "profiles.toml"),
        str(home / "config" / "connector.json"),
    ]


def test_init_writes_an_active_profile() -> None:
    assert init().exit_code == 0
    settings = load_settings()
    assert settings.active == "default"
    assert settings.profile("default").standard_endpoint == "https://oss-cn-hangzhou-internal.aliyuncs.com"


def test_init_prompts_for_missing_values() -> None:
    accelerated = "https://cn-beijing-internal.oss-data-acc.aliyuncs.com"
    answers = ("cn-beijing", "my-bucket", "nowhere.oss-data-acc.aliyuncs.com", accelerated, "LTAI5tExample", SECRET)
    result = run("init", text="".join(f"{answer}\n" for answer in answers))
    assert "Region" in result.output
    assert "looks like https://cn-beijing-" in result.output
    assert "is not a region ID" in result.output
    assert SECRET not in result.output
    profile = load_settings().profile("default")
    assert (profile.bucket, profile.accelerated_endpoint) == ("my-bucket", accelerated)
    found = find_credentials(profile)()
    assert (found.access_key_id, found.access_key_secret.reveal()) == ("LTAI5tExample", SECRET)


def test_init_asks_again_for_what_cannot_be() -> None:
    answers = ("hangzhou", "cn-hangzhou", "No_Bucket", "my-bucket", "oss-cn-hangzhou.aliyuncs.com", "", "")
    result = run("init", text="".join(f"{answer}\n" for answer in answers))
    assert "Did you mean cn-hangzhou?" in result.output
    assert "'No_Bucket' is not a bucket name" in result.output
    assert "it caches nothing" in result.output
    profile = load_settings().profile("default")
    assert (profile.region, profile.bucket, profile.accelerated_endpoint) == ("cn-hangzhou", "my-bucket", None)


@pytest.mark.parametrize(
    ("arguments", "text", "remedy"), [((), "", "--region"), (("--region", "cn-hangzhou"), "a_b\n", "--bucket")]
)
def test_init_names_the_option_where_nobody_answers(arguments: tuple[str, ...], text: str, remedy: str) -> None:
    with pytest.raises(SettingsError, match="the input has ended") as caught:
        run("init", *arguments, text=text)
    assert remedy in caught.value.remedy
    assert not load_settings().profiles


def test_init_asks_nothing_for_a_name_that_exists() -> None:
    init()
    with pytest.raises(SettingsError, match="exists already"):
        run("init", text="cn-hangzhou\nmy-bucket\n")


@pytest.mark.parametrize(
    ("option", "endpoint", "words"),
    [
        ("--standard-endpoint", "oss-cn-shanghai-internal.aliyuncs.com", "is in cn-shanghai, and the bucket in"),
        ("--accelerated-endpoint", "cn-shanghai-g-internal.oss-data-acc.aliyuncs.com", "is in cn-shanghai"),
        ("--standard-endpoint", "cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com", "not the bucket's own"),
        ("--accelerated-endpoint", "oss-cn-hangzhou-internal.aliyuncs.com", "caches nothing"),
        ("--accelerated-endpoint", "oss-accelerate.aliyuncs.com", "not an accelerator's endpoint"),
    ],
)
def test_init_refuses_an_endpoint_that_cannot_be_right(option: str, endpoint: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        init(option, endpoint)
    assert "cn-hangzhou" in caught.value.remedy
    assert not load_settings().profiles


def test_init_asks_nothing_more_where_the_options_say_it() -> None:
    result = init()
    assert "Accelerated endpoint" not in result.output
    assert load_settings().profile("default").accelerated_endpoint is None


def test_init_replaces_only_with_force() -> None:
    init()
    with pytest.raises(ConsoleError, match="already"):
        init()
    assert init("--force", "--standard-endpoint", "oss-cn-hangzhou.aliyuncs.com").exit_code == 0
    assert load_settings().profile("default").standard_endpoint == "https://oss-cn-hangzhou.aliyuncs.com"


def test_show_prints_each_value_and_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    init()
    write_connector_file(Credentials("LTAI5tExampleKeyId", Secret("sentinel-91c")))
    monkeypatch.setenv("OSSCONSOLE_BUCKET", "elsewhere")
    found = json.loads(run("show", "--json").output)
    assert found["profile"] == "default"
    assert found["settings"]["bucket"] == {"value": "elsewhere", "origin": "environment OSSCONSOLE_BUCKET"}
    assert found["settings"]["region"]["origin"] == "profile default"
    assert found["settings"]["credentials in use"]["value"].startswith("LTAI…eyId from connector file")
    text = run("show", "--dataset-prefix", "mine").output
    assert "flag --dataset-prefix" in text
    assert "sentinel" not in text


def test_show_without_a_profile_has_a_remedy() -> None:
    with pytest.raises(ConsoleError) as caught:
        run("show")
    assert "config init" in caught.value.remedy


def test_validate() -> None:
    init()
    assert "1 profile, active: default" in run("validate").output
    path = Path(run("path").output.split()[0])
    path.write_text(path.read_text().replace("bucket", "buckett"))
    with pytest.raises(ConsoleError, match="line 5"):
        run("validate")


@pytest.mark.parametrize("name", ["config", "state"])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_folder_that_others_can_write_is_reported_and_used(
    home: Path, name: str, foreign: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    if foreign and os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    if foreign:
        os.chown(home / name, 12345, -1)
    else:
        (home / name).chmod(0o777)
    assert run_group(ossconsole, ("config", "path")) == 0
    out, err = capfd.readouterr()
    assert "profiles.toml" in out
    assert f"{home / name} {'belongs to another user (uid 12345)' if foreign else 'is writable for all users'}" in err
    assert f"OSSCONSOLE_{name.upper()}_DIR" in err


def test_private_folders_cause_no_warning(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("config", "state"):
        (home / name).rmdir()
    for command in (("config", "path"), ("config", "validate"), ("status",), ("export", "--csv")):
        run_group(ossconsole, command)
    assert "Warning" not in capfd.readouterr().err
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("region", "bucket", "endpoint", "words"),
    [
        ("hangzhou", "data", "", "Did you mean cn-hangzhou?"),
        ("oss-cn-hangzhou", "data", "", "Did you mean cn-hangzhou?"),
        ("cn-hangzou", "data", "https://oss-cn-hangzou.aliyuncs.com", ""),
        ("cn-hangzhou", "cn-hangzhou", "", "is a region, not a bucket"),
        ("cn-hangzhou", "data", "oss-hangzhou-internal.aliyuncs.com", "https://oss-cn-hangzhou-internal.aliyuncs.com?"),
        ("cn-hangzhou", "data", "hangzhou-j-internal.oss-data-acc.aliyuncs.com", "is not a region ID"),
        ("ap-southeast-9", "data", "", ""),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_written_and_when_it_is_read(
    region: str, bucket: str, endpoint: str, words: str, home: Path
) -> None:
    def write() -> Result:
        return run("init", "--region", region, "--bucket", bucket, "--standard-endpoint", endpoint)

    if not words:  # a region that is newer than this program may be
        assert write().exit_code == 0
        assert run("validate").exit_code == 0
        return
    with pytest.raises(ConsoleError) as caught:
        write()
    assert words in str(caught.value)
    path = home / "config" / "profiles.toml"
    path.parent.mkdir(exist_ok=True)
    extra = f'standard_endpoint = "{endpoint}"\n' if endpoint else ""
    path.write_text(f'active = "a"\n[profiles.a]\nregion = "{region}"\nbucket = "{bucket}"\n{extra}')
    with pytest.raises(ConsoleError) as caught:
        run("validate")
    assert words in str(caught.value)
