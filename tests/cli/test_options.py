from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from ossconsole.cli.app import ossconsole
from ossconsole.cli.options import AutoOr, Target, profile_options
from ossconsole.cli.output import run_group
from ossconsole.cli.sandbox import slow_down_until
from ossconsole.cli.train import train
from ossconsole.config.credential_sources import write_connector_file
from ossconsole.config.credentials import Credentials, NoCredentialsError, Secret
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import SANDBOX_NAME, Settings, load_settings, save_settings
from ossconsole.config.resolve import FIELDS, option_name
from ossconsole.sandbox.control import SandboxControl
from ossconsole.training.settings import AUTO, TrainSettings, with_preset
from tests.profiles import HANGZHOU


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


def leaf_commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command of the program, also those of nested groups, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from leaf_commands(found, *path, name)
        else:
            yield (*path, name), found


COMMANDS = dict(leaf_commands(ossconsole))
PREFIXES = {"dataset_prefix", "checkpoint_prefix"}
# The options that a command does not have. The sandbox's --region is that of its requests.
REFUSING = {
    ("config", "init"): {"profile", *PREFIXES, "readonly"},
    ("config", "path"): {"profile", *FIELDS},
    ("config", "validate"): {"profile", *FIELDS},
    ("sandbox",): {"profile", *FIELDS, "readonly"} - {"region"},
    ("bench",): {"readonly"},
    ("demo",): {"readonly"},
    ("run",): {"profile", *FIELDS, "readonly"},
    ("train",): {"readonly"},
}
VALUES = {"plain_http": "allowed", "readonly": True}


def output(*arguments: str) -> str:
    return CliRunner().invoke(command, arguments, catch_exceptions=False).output


def test_the_command_gets_its_target() -> None:
    assert output() == "sandbox\n"
    save_settings(Settings().with_profile(HANGZHOU, activate=True))
    assert output() == "training-data profile hangzhou\n"
    assert output("--bucket", "other") == "other flag --bucket\n"
    assert output("--profile", "sandbox") == "sandbox\n"


def test_a_sandbox_that_was_named_is_not_called_the_lack_of_a_profile(capsys: pytest.CaptureFixture[str]) -> None:
    save_settings(Settings().with_profile(HANGZHOU, activate=True))
    for name in (SANDBOX_NAME, ""):
        save_settings(load_settings().activated(""))
        with Target({"profile": name} if name else {}).open():
            assert ("No profile is active" in capsys.readouterr().err) is not bool(name)


def test_every_option_is_there() -> None:
    text = output("--help")
    for option in ("profile", "bucket", "region", "standard-endpoint", "accelerated-endpoint", "dataset-prefix"):
        assert f"--{option} " in text


@pytest.mark.parametrize("arguments", [("--help",), ("config", "--help")])
def test_the_list_of_commands_is_whole_in_80_columns(arguments: tuple[str, ...]) -> None:
    listed = CliRunner().invoke(ossconsole, arguments, terminal_width=80).output.partition("Commands:")[2]
    assert listed
    assert "..." not in listed


def test_the_help_of_the_demo_names_no_option_that_it_refuses() -> None:
    text = CliRunner().invoke(ossconsole, ["demo", "--help"]).output
    assert "--dataset-prefix" in text
    for option in ("profile", "bucket", "region", "standard-endpoint", "accelerated-endpoint", "plain-http"):
        assert f"--{option} " not in text


@pytest.mark.parametrize(("typed", "hint"), [("trian", " Did you mean 'train'?"), ("qqq", "")])
def test_a_command_that_does_not_exist_is_corrected(typed: str, hint: str) -> None:
    result = CliRunner().invoke(ossconsole, [typed])
    assert result.exit_code == 2
    assert f"No such command '{typed}'.{hint}\n" in result.output


@pytest.mark.parametrize("option", ["profile", *FIELDS, "readonly"])
@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_group_options_for_every_command(
    path: tuple[str, ...], option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option before the command is the same as after it, where the later one wins; or it is refused."""
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(COMMANDS[path], "callback", lambda *_, **options: seen.append(options))
    value = VALUES.get(option, "before")
    typed = [option_name(option)] if value is True else [option_name(option), str(value)]
    arguments = [name for parameter in COMMANDS[path].params for name in needed(parameter) if parameter.name != option]

    code = run_group(ossconsole, [*typed, *path, *arguments])

    if option in REFUSING.get(path, ()):
        assert code == 2
        assert not seen
        assert f"{path[-1]!r} cannot be used with {option_name(option)}." in capsys.readouterr().err
        return
    assert code == 0, capsys.readouterr().err
    if option != "readonly" or option in seen[0]:  # a command that only reads does not get it
        assert seen[0][option] == value
    if value == "before":
        assert run_group(ossconsole, [*typed, *path, option_name(option), "after", *arguments]) == 0
        assert seen[1][option] == "after"


def needed(parameter: click.Parameter) -> list[str]:
    """Some value for what a command asks for."""
    if isinstance(parameter, click.Argument):
        return ["something"] if parameter.required else []
    asked = isinstance(parameter, click.Option) and (parameter.required or parameter.prompt)
    return [parameter.opts[0], "something"] if asked else []


@pytest.mark.parametrize("command", ["status", "export --json"])
@pytest.mark.parametrize("option", sorted(set(FIELDS) - {"bucket"}))
def test_runs_are_not_selected_by_what_they_do_not_record(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_group(ossconsole, [option_name(option), "x", *command.split()]) == 2
    assert f"{option_name(option)}: runs are selected by --profile and --bucket alone." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *itertools.product(("--profile sandbox ls", "demo"), sorted(set(FIELDS) - PREFIXES)),
        ("ls", "plain_http"),  # a bucket or an endpoint without a profile is no sandbox
    ],
)
def test_the_sandbox_refuses_another_place(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, [option_name(option), "allowed", *command.split()]) == 2
    assert f"cannot be used with {option_name(option)}. Leave" in capsys.readouterr().err


def test_the_demo_refuses_another_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, ["--profile", "mine", "demo"]) == 2
    assert "--profile: the demo uses the sandbox." in capsys.readouterr().err


def test_a_profile_that_is_not_there_is_refused_before_the_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, ["--profile", "nosuch", "ls"]) == 2
    assert "The profile 'nosuch' does not exist." in capsys.readouterr().err


def test_another_profile_keeps_the_other_flags() -> None:
    target = Target({"profile": "a", "dataset_prefix": "mine"}).with_profile("b")
    assert target.flags == {"profile": "b", "dataset_prefix": "mine"}


def test_opening_finds_the_credentials() -> None:
    save_settings(Settings().with_profile(HANGZHOU, activate=True))
    with pytest.raises(NoCredentialsError), Target().open():
        pass
    write_connector_file(Credentials("from-file", Secret("s")))
    with Target().open() as opened:
        assert opened.sandbox is None
        assert opened.profile == HANGZHOU
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


def test_another_user_of_the_sandbox_reads_that_a_demo_has_slowed_it_down(capsys: pytest.CaptureFixture[str]) -> None:
    words = "A demo has slowed down the sandbox's standard endpoint to 26 objects/s (simulated), until the demo's run"
    with Target().open() as demo:
        assert demo.sandbox is not None
        info = demo.sandbox.info
        usual = SandboxControl(info).status()

        def look_meanwhile() -> None:
            assert SandboxControl(info).status().shaping.standard_objects_per_s == 26.4
            with Target().open():
                assert words in capsys.readouterr().err

        slow_down_until(look_meanwhile, demo.sandbox, 26.4)
        assert SandboxControl(info).status() == usual
        with Target().open():
            assert words not in capsys.readouterr().err


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


def test_a_closed_pipe_causes_no_traceback() -> None:
    code = (
        "import click, sys; from ossconsole.cli.output import run_group\n"
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--learning-rate", "nan"),
        ("train", "--val-split", "NaN"),
        ("upload", "SRC", "--val-split", "nan"),
        ("upload", "SRC", "--bandwidth", "inf"),
        ("warm", "--bandwidth", "nan"),
        ("bench", "--seconds", "inf"),
        ("evaluate", "--val-split", "nan"),
        ("sandbox", "--standard-objects-per-s", "nan"),
    ],
    ids=" ".join,
)
def test_a_number_that_is_not_finite_is_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, arguments) == 2
    assert f"{arguments[-1]} is not a finite number." in capsys.readouterr().err


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_the_generators_do_not_take_is_refused(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, ["train", f"--seed={seed}"]) == 2
    assert "is not in the range" in capsys.readouterr().err


def test_an_upload_of_an_unset_variable_does_not_send_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(ossconsole, ["upload", ""]) == 2
    assert "SRC is empty" in capsys.readouterr().err


def test_closed_output_causes_no_traceback() -> None:
    command = f'"{sys.executable}" -m ossconsole config show --json --profile sandbox'
    done = subprocess.run(["bash", "-c", f"{command} >&- <&-"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The sandbox was named")


def test_a_full_disk_causes_no_traceback() -> None:
    code = (
        "import click, sys; from ossconsole.cli.output import run_group, say\n"
        "@click.command()\ndef many():\n    say('line')\n"
        "sys.exit(run_group(many, []))"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, "Error: The output is incomplete: No space left on device.\n")


def test_the_options_import_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys, ossconsole.cli.options, ossconsole.cli.output, ossconsole.cli.doctor, ossconsole.cli.config;"
        "print({'torch', 'textual', 'oss2', 'aiohttp'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "set()", done.stderr


def commands_of(group: click.Group) -> Iterator[click.Command]:
    """The group itself and every command below it."""
    yield group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands_of(command)
        else:
            yield command


def test_every_option_has_a_help_text() -> None:
    without = [
        (command.name, parameter.name)
        for command in commands_of(ossconsole)
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden and not parameter.help
    ]
    assert without == []


def test_a_preset_is_what_the_user_did_not_give() -> None:
    values = {"weights": "none", "learning_rate": 0.1, "epochs": 5}
    found = with_preset(values, "tutorial", given={"learning_rate"})
    assert (found["weights"], found["learning_rate"], found["epochs"]) == ("imagenet", 0.1, 5)
    assert with_preset(values, None, given=()) == values
    TrainSettings(**found)
    assert "--preset" in CliRunner().invoke(ossconsole, ["train", "--help"]).output


def test_the_options_of_train_accept_what_its_settings_accept() -> None:
    options = {parameter.name: parameter for parameter in train.params}
    for name, value in msgspec.structs.asdict(TrainSettings()).items():
        accepted = options[name].type
        auto = isinstance(accepted, AutoOr) and value == accepted.auto
        assert options[name].default == (AUTO if auto else str(value) if isinstance(value, EndpointKind) else value)
    momentum = options["momentum"].type
    assert isinstance(momentum, click.FloatRange)
    assert (momentum.min, momentum.max, momentum.max_open) == (0, 1, True)
    assert options["fall_back"].secondary_opts == ["--no-fall-back"]
