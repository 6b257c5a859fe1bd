from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from ossconsole.cli.errors import run_group
from ossconsole.cli.options import Target, profile_options
from ossconsole.config.credential_files import write_connector_file
from ossconsole.config.credentials import Credentials
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profile import Profile
from ossconsole.config.secret import Secret
from ossconsole.config.settings_file import Settings, save_settings
from ossconsole.config.sources import NoCredentialsError
from ossconsole.sandbox.control import SandboxControl

PROFILE = Profile(
    name="hangzhou",
    region="cn-hangzhou",
    bucket="training-data",
    standard_endpoint="https://oss-cn-hangzhou-internal.aliyuncs.com",
)


@click.command()
@click.option("--json", "as_json", is_flag=True)
@click.option("--fail", "how", default="")
@profile_options
def command(as_json: bool, how: str, target: Target) -> None:
    if how:
        raise {
            "console": ConsoleError("It broke.", remedy="Mend it."),
            "settings": SettingsError("It is wrong."),
            "interrupt": KeyboardInterrupt(),
        }[how]
    resolution = target.resolve()
    click.echo("sandbox" if resolution is None else f"{resolution.profile.bucket} {resolution.origins['bucket']}")


def output(*arguments: str) -> str:
    return CliRunner().invoke(command, arguments, catch_exceptions=False).output


def test_the_command_gets_its_target() -> None:
    assert output() == "sandbox\n"
    save_settings(Settings().with_profile(PROFILE, activate=True))
    assert output() == "training-data profile hangzhou\n"
    assert output("--bucket", "other") == "other flag --bucket\n"
    assert output("--profile", "sandbox") == "sandbox\n"


def test_every_option_is_there() -> None:
    text = output("--help")
    for option in ("profile", "bucket", "region", "standard-endpoint", "accelerated-endpoint", "dataset-prefix"):
        assert f"--{option} " in text


def test_opening_finds_the_credentials() -> None:
    save_settings(Settings().with_profile(PROFILE, activate=True))
    with pytest.raises(NoCredentialsError), Target().open():
        pass
    write_connector_file(Credentials("from-file", Secret("s")))
    with Target().open() as opened:
        assert opened.sandbox is None
        assert opened.profile == PROFILE
        assert opened.credentials().access_key_id == "from-file"


def test_without_a_profile_the_sandbox_answers_as_long_as_it_is_open(capsys: pytest.CaptureFixture[str]) -> None:
    with Target({"dataset_prefix": "mine"}).open() as opened:
        assert opened.sandbox is not None
        control = SandboxControl(opened.sandbox.info)
        assert control.status().shaping.standard_objects_per_s
        assert opened.profile.simulated
        assert opened.profile.dataset_prefix == "mine"
        assert opened.credentials().source == "sandbox"
    for attempt in Retrying(
        stop=stop_after_delay(10), wait=wait_fixed(0.05), retry=retry_if_exception_type(AssertionError)
    ):
        with attempt, pytest.raises(ConsoleError, match="does not answer"):
            control.status()
    assert capsys.readouterr().err.count("sandbox") == 1


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("console", 1, "Error: It broke. Mend it.\n"),
        ("settings", 2, "Error: It is wrong.\n"),
        ("interrupt", 130, "Interrupted.\n"),
    ],
)
def test_a_failed_command_ends_in_one_line(how: str, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(command, ["--fail", how]) == code
    captured = capsys.readouterr()
    assert captured.err.lstrip() == words
    assert captured.out == ""


def test_with_json_the_error_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(command, ["--json", "--fail", "console"]) == 1
    captured = capsys.readouterr()
    event = json.loads(captured.out)
    assert (event["event"], event["message"], event["remedy"]) == ("error", "It broke.", "Mend it.")
    assert captured.err == "Error: It broke. Mend it.\n"


def test_bad_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(command, ["--nope", "--json"]) == 2
    captured = capsys.readouterr()
    assert "No such option" in captured.err
    assert "No such option" in json.loads(captured.out)["message"]


def test_a_command_that_ends_well_is_0() -> None:
    assert run_group(command, []) == 0
    assert run_group(command, ["--help"]) == 0


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = (
        "import click, sys; from ossconsole.cli.errors import run_group\n"
        "@click.command()\ndef many():\n    for _ in range(100_000): click.echo('line')\n"
        "sys.exit(run_group(many, []))"
    )
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$0" | head -1', code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "line\n"
    assert done.stderr == ""


def test_the_options_import_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys, ossconsole.cli.options, ossconsole.cli.errors, ossconsole.cli.doctor, ossconsole.cli.config;"
        "print({'torch', 'textual', 'oss2', 'aiohttp'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "set()", done.stderr
