"""What is behind the screens: the states of the bucket, and the target, of which only fields are replaced."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator

import pytest

from ossconsole.cli.application import Application
from ossconsole.cli.options import Target
from ossconsole.config.credential_sources import connector_file, write_connector_file
from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import Profile, Settings, save_settings
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import RunRecord, record_path
from ossconsole.training.remote.control import Report
from ossconsole.training.run_evaluation import EvaluationJob
from ossconsole.training.settings import TrainSettings
from ossconsole.tui.console import ConsoleState, NoCredentials, Ready, StageState, Starting, Unavailable
from tests.cli.consoles import wait_until
from tests.profiles import HANGZHOU

FLAGS = {"bucket": "127", "region": "cn-sandbox", "standard_endpoint": "http://0.0.1:9", "dataset_prefix": "mine"}
KEY = Credentials("typed", Secret("secret"))
Opened = Callable[..., Application]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Applications after their start; they are closed after the test."""
    made: list[Application] = []

    def make(target: Target, **options: bool) -> Application:
        application = Application(target, **options)
        made.append(application)
        application.open()
        application.begin()
        settled(application)
        return application

    yield make
    for application in made:
        application.close(lambda _: None)


def settled(application: Application) -> ConsoleState:
    wait_until(lambda: not isinstance(application.state, Starting))
    return application.state


def test_an_entered_key_is_used_immediately_also_with_flags_alone(opened: Opened) -> None:
    application = opened(Target(FLAGS))
    state = application.state
    assert isinstance(state, NoCredentials)
    assert state.profile is not None
    assert not state.usable
    assert application.profile is None
    assert any("OSS_ACCESS_KEY_ID (not set)" in line for line in state.searched)
    with pytest.raises(ConsoleError, match=r"no credentials yet\. Press 1, then k"):
        application.credentials()

    write_connector_file(KEY)
    application.reload()

    assert isinstance(settled(application), Ready)
    assert application.credentials().access_key_id == "typed"
    assert application.profile is not None
    assert application.profile.dataset_prefix == "mine"


def test_reloading_and_another_profile_keep_the_flags(opened: Opened) -> None:
    other = Profile(
        name="other",
        region="cn-beijing",
        bucket="other-bucket",
        standard_endpoint="https://oss-cn-beijing.aliyuncs.com",
    )
    save_settings(Settings().with_profile(HANGZHOU).with_profile(other, activate=True))
    write_connector_file(KEY)
    application = opened(Target({"profile": "hangzhou", "dataset_prefix": "mine"}))

    application.reload()
    settled(application)
    assert application.profile is not None
    assert (application.profile.name, application.profile.dataset_prefix) == ("hangzhou", "mine")

    application.use_profile("other")
    settled(application)
    assert (application.profile.name, application.profile.dataset_prefix) == ("other", "mine")
    origins = {setting.name: setting.origin for setting in application.settings()}
    assert (origins["dataset_prefix"], origins["bucket"]) == ("flag --dataset-prefix", "profile other")


def test_a_profile_that_cannot_be_used_changes_nothing(opened: Opened) -> None:
    save_settings(Settings().with_profile(HANGZHOU))
    write_connector_file(KEY)
    application = opened(Target(FLAGS))
    before = application.state
    for name, words in (("nosuch", "profile 'nosuch' does not exist"), ("sandbox", "cannot be used with --bucket")):
        with pytest.raises(SettingsError, match=words):
            application.use_profile(name)
        assert application.state is before


def test_a_credential_file_that_cannot_be_read_is_a_reason(opened: Opened) -> None:
    save_settings(Settings().with_profile(HANGZHOU, activate=True))
    connector_file().parent.mkdir(parents=True)
    connector_file().write_text("{")
    state = opened(Target()).state
    assert isinstance(state, Unavailable)
    assert str(connector_file().name) in state.reason


def test_no_error_leaves_the_state_at_starting(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ossconsole.sandbox.shared.SharedSandbox.open", broken)
    state = opened(Target()).state
    assert isinstance(state, Unavailable)
    assert "No space left on device" in state.reason
    assert state.stages[0].state is StageState.FAILED


def test_without_a_way_to_be_found_by_others_the_bucket_can_be_used(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ConsoleError("Other consoles cannot find this one.")

    monkeypatch.setattr("ossconsole.training.remote.control.ControlServer.__init__", refused)
    write_connector_file(KEY)
    application = opened(Target(FLAGS))
    wait_until(lambda: application.state.stages)
    state = application.state
    assert isinstance(state, Ready)
    assert [(stage.state, stage.detail) for stage in state.stages] == [
        (StageState.FAILED, "Other consoles cannot find this one.")
    ]


def test_a_process_that_does_not_answer_holds_up_neither_the_bucket_nor_another_profile(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def silent() -> Iterator[Report]:
        asked.set()
        go_on.wait(60)
        return iter(())

    monkeypatch.setattr("ossconsole.training.remote.control.peers", silent)
    save_settings(Settings().with_profile(HANGZHOU))
    write_connector_file(KEY)
    application = opened(Target({"profile": "hangzhou"}))
    try:
        assert asked.wait(60)
        assert isinstance(application.state, Ready)
        application.reload()
    finally:
        go_on.set()
    assert isinstance(settled(application), Ready)


def test_no_run_and_no_second_evaluation_start_during_an_evaluation(opened: Opened) -> None:
    write_connector_file(KEY)
    application = opened(Target(FLAGS))
    profile = application.profile
    assert profile is not None
    record = record_path("evaluated")
    run = events.Run(time=1.0, run="evaluated", version="1", bucket=profile.bucket, region=profile.region)
    saved = events.Checkpoint(time=2.0, key="a.pt", bytes=1, seconds=1.0, stable_key="s")
    with RunRecord(record) as written:
        written.append(run, saved)
    application.evaluation = EvaluationJob(record, profile, application.credentials)
    with pytest.raises(ConsoleError, match="evaluated is being evaluated, and a run would share") as refused:
        application.start_run(TrainSettings())
    assert "cancel it" in refused.value.remedy
    with pytest.raises(ConsoleError, match="another evaluation would share"):
        application.start_evaluation(record)
    assert application.run is None


def test_a_run_on_a_sandbox_that_a_demo_has_slowed_down_has_that_in_its_record(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slowed:
        def slowed_words(self) -> str:
            return "A demo has slowed it down."

    class Run:
        record_path, alive = record_path("slowed"), False

        def __init__(self, *_: object, on_event: Callable[[events.Event], None], **_options: object) -> None:
            self.on_event, self.warnings = on_event, list[str]()

        def warn(self, message: str, _remedy: str) -> None:
            self.warnings.append(message)

        def start(self) -> None:
            self.on_event(events.Run(time=1.0, run="slowed", version="1"))
            self.on_event(events.State(time=1.0, state=RunState.RUNNING))

    monkeypatch.setattr("ossconsole.training.run.TrainingRun", Run)
    write_connector_file(KEY)
    application = opened(Target(FLAGS))
    assert application._opened is not None
    application._opened = dataclasses.replace(application._opened, sandbox=Slowed())  # type: ignore[arg-type]
    run = application.start_run(TrainSettings())
    assert isinstance(run, Run)
    assert run.warnings == ["A demo has slowed it down."]


def test_nothing_is_started_or_changed_while_the_sample_dataset_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    preparing, go_on = threading.Event(), threading.Event()

    def fill(*_: object) -> None:
        preparing.set()
        go_on.wait(60)

    monkeypatch.setattr(Application, "_fill_sandbox", fill)
    application = Application(Target())
    application.open()
    application.begin()
    try:
        assert preparing.wait(60)
        state = application.state
        assert isinstance(state, Starting)
        assert state.opened
        assert application.profile is not None
        with pytest.raises(ConsoleError, match="sample dataset is still being prepared"):
            application.start_run(TrainSettings())
        with pytest.raises(ConsoleError, match="still being prepared"):
            application.reload()
        go_on.set()
        assert isinstance(settled(application), Ready)
    finally:
        go_on.set()
        application.close(lambda _: None)
