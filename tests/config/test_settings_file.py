from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.credential_sources import connector_file
from ossconsole.config.errors import SettingsError
from ossconsole.config.files import CONFIG_DIR_VARIABLE, STATE_DIR_VARIABLE, config_dir, short_path, state_dir
from ossconsole.config.profiles import OnHangup, Profile, Settings, load_settings, save_settings, settings_path

HANGZHOU = Profile(
    name="hangzhou",
    region="cn-hangzhou",
    bucket="training-data",
    standard_endpoint="https://oss-cn-hangzhou-internal.aliyuncs.com",
    accelerated_endpoint="https://cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com",
    credentials="ossutil:gpu",
)


def write(text: str) -> Path:
    path = settings_path()
    path.write_text(text, encoding="utf-8")
    return path


def failure(text: str) -> SettingsError:
    write(text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.exit_code == 2
    return caught.value


def test_no_file_means_no_profiles() -> None:
    assert load_settings() == Settings()


def test_what_was_saved_is_loaded_again() -> None:
    settings = Settings().with_profile(HANGZHOU, activate=True)
    save_settings(settings)
    assert load_settings() == settings
    assert load_settings().active == "hangzhou"


def test_the_file_is_private_and_leaves_nothing_else_behind() -> None:
    save_settings(Settings().with_profile(HANGZHOU))
    assert stat.S_IMODE(settings_path().stat().st_mode) == 0o600
    assert [path.name for path in settings_path().parent.iterdir()] == ["profiles.toml"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    kept = tmp_path / "kept.toml"
    kept.touch()
    settings_path().symlink_to(kept)
    save_settings(Settings().with_profile(HANGZHOU))
    assert settings_path().is_symlink()
    assert "hangzhou" in kept.read_text()


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with pytest.raises(SettingsError, match="cannot be created"):
        save_settings(Settings(), tmp_path / "plain" / "profiles.toml")


def test_an_unknown_key_names_file_line_and_nearest_key() -> None:
    error = failure('active = ""\n\n[profiles.a]\nregion = "cn-hangzhou"\nbuckt = "abc"\n')
    assert f"{settings_path()}, line 5, [profiles.a] buckt" in error.message
    assert "'bucket'" in error.remedy


def test_an_unknown_top_key_names_the_nearest() -> None:
    error = failure('actve = "a"\n')
    assert "line 1, actve" in error.message
    assert "'active'" in error.remedy


def test_a_wrong_value_names_its_line() -> None:
    error = failure('[profiles.a]\nregion = "cn-hangzhou"\nbucket = "UPPER"\n')
    assert "line 3, [profiles.a] bucket" in error.message


def test_a_missing_key_names_the_tables_line() -> None:
    error = failure('# mine\n[profiles.a]\nregion = "cn-hangzhou"\n')
    assert "line 2, [profiles.a] bucket" in error.message


def test_a_wrong_type_is_an_error_with_the_valid_type() -> None:
    error = failure('[profiles.a]\nregion = "cn-hangzhou"\nbucket = 127\n')
    assert "line 3" in error.message
    assert "text in quotes" in error.message


def test_broken_toml_names_the_line() -> None:
    assert "line 2" in failure("[profiles.a]\nregion = \n").message


def test_the_active_profile_must_exist() -> None:
    error = failure('active = "hangzou"\n[profiles.hangzhou]\nregion = "cn-hangzhou"\nbucket = "abc"\n')
    assert "line 1, active" in error.message
    assert "'hangzhou'" in error.remedy


def test_profiles_that_are_no_tables_are_refused() -> None:
    assert "tables" in failure('profiles = "a"\n').message
    assert "profiles.a must be a table" in failure('[profiles]\na = "b"\n').message


def test_the_sandboxs_name_is_reserved() -> None:
    assert "embedded server" in failure('[profiles.sandbox]\nregion = "cn-hangzhou"\nbucket = "abc"\n').message


def test_the_standard_endpoint_defaults_to_the_regions_internal_one() -> None:
    write('[profiles.a]\nregion = "cn-beijing"\nbucket = "abc"\n')
    assert load_settings().profile("a").standard_endpoint == "https://oss-cn-beijing-internal.aliyuncs.com"


def test_endpoints_and_prefixes_are_normalised() -> None:
    write(
        '[profiles.a]\nregion = "cn-beijing"\nbucket = "abc"\ndataset_prefix = "/data/"\n'
        'standard_endpoint = "abc.oss-cn-beijing.aliyuncs.com/"\n'
    )
    profile = load_settings().profile("a")
    assert profile.standard_endpoint == "https://oss-cn-beijing.aliyuncs.com"
    assert profile.dataset_prefix == "data"


def test_renaming_keeps_place_and_activity() -> None:
    other = msgspec.structs.replace(HANGZHOU, name="other")
    settings = Settings().with_profile(HANGZHOU, activate=True).with_profile(other).renamed("hangzhou", "new")
    assert list(settings.profiles) == ["new", "other"]
    assert settings.profiles["new"].name == "new"
    assert settings.active == "new"
    with pytest.raises(SettingsError, match="already"):
        settings.renamed("new", "other")
    with pytest.raises(SettingsError, match="not a profile name"):
        settings.renamed("new", "a/b")


def test_deleting_the_active_profile_leaves_the_sandbox() -> None:
    settings = Settings().with_profile(HANGZHOU, activate=True).without("hangzhou")
    assert settings == Settings()
    with pytest.raises(SettingsError, match="does not exist"):
        settings.without("hangzhou")


def test_activating() -> None:
    settings = Settings().with_profile(HANGZHOU)
    assert settings.activated("hangzhou").active == "hangzhou"
    assert settings.activated("sandbox").active == ""
    with pytest.raises(SettingsError) as caught:
        settings.activated("hangzho")
    assert "'hangzhou'" in caught.value.remedy


def test_the_price_of_the_machine_is_saved_and_validated() -> None:
    assert load_settings().price_per_hour == 0.0
    save_settings(msgspec.structs.replace(Settings(), price_per_hour=12.5))
    assert load_settings().activated("").price_per_hour == 12.5
    for wrong in ('"12"', "-1", "true", "nan", "inf", f"1{'0' * 400}"):
        settings_path().write_text(f"price_per_hour = {wrong}\n")
        with pytest.raises(SettingsError, match="price_per_hour must be a number of CNY"):
            load_settings()
    settings_path().write_text(f"price_per_hour = 1{'0' * 5000}\n")  # longer than Python reads
    with pytest.raises(SettingsError):
        load_settings()


def test_on_hangup_is_saved_and_validated() -> None:
    assert load_settings().on_hangup is OnHangup.CONTINUE
    changed = msgspec.structs.replace(Settings(), on_hangup=OnHangup.STOP)
    save_settings(changed.with_profile(HANGZHOU, activate=True))
    assert load_settings().on_hangup is OnHangup.STOP
    assert load_settings().activated("").on_hangup is OnHangup.STOP
    error = failure('on_hangup = "stopp"\n')
    assert "line 1, on_hangup" in error.message
    assert "Did you mean 'stop'?" in error.remedy


def obstacle(kind: str) -> None:
    """Puts something else than a readable file where the settings belong."""
    path = settings_path()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to({"loop": path.name, "device": "/dev/zero"}[kind])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("fifo", "it is a fifo"),
        ("folder", "it is a folder"),
        ("socket", "No such device"),
        ("loop", "symbolic link"),
        ("device", "it is a device"),
    ],
)
def test_anything_but_a_regular_file_is_refused_without_blocking(kind: str, words: str) -> None:
    obstacle(kind)
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings()
    assert str(settings_path()) in caught.value.message
    assert "mv " in caught.value.remedy


def test_a_byte_order_mark_is_left_out() -> None:
    write("\ufeff" + '[profiles.a]\nregion = "cn-beijing"\nbucket = "abc"\n')
    assert list(load_settings().profiles) == ["a"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named(encoding: str) -> None:
    settings_path().write_bytes('active = ""\n'.encode(encoding))
    with pytest.raises(SettingsError, match="UTF-16") as caught:
        load_settings()
    assert "iconv" in caught.value.remedy


def test_latin_1_is_refused() -> None:
    settings_path().write_bytes('active = "münchen"\n'.encode("latin-1"))
    with pytest.raises(SettingsError, match="is not UTF-8 text"):
        load_settings()


def test_without_profiles_the_remedy_is_config_init() -> None:
    error = failure('active = "mine"\n')
    assert error.remedy == "Create a profile: ossconsole config init"


def test_keys_are_saved_and_a_table_of_them_is_needed() -> None:
    keys = {"train.pause": "p", "train.stop": "x,S", "app.quit": "Q"}
    save_settings(Settings(keys=keys))
    assert load_settings().keys == keys
    settings_path().write_text('[keys]\ntrain.pause = "p"\n')
    assert load_settings().keys == {"train.pause": "p"}
    for text, words in (('[keys]\npause = "p"\n', "must be a table"), ("[keys]\ntrain.pause = 3\n", "in quotes")):
        settings_path().write_text(text)
        with pytest.raises(SettingsError, match=words):
            load_settings()


def test_a_user_without_a_home_folder_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", CONFIG_DIR_VARIABLE, STATE_DIR_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    for folder in (config_dir, state_dir):
        with pytest.raises(SettingsError, match=r"no home folder\. Set HOME"):
            folder()
    assert not connector_file().exists()
    assert short_path("/data/x") == "/data/x"
