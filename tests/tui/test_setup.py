"""The Setup screen: settings with their origin, the test of the bucket, and each change through its dialog."""

from __future__ import annotations

import asyncio
import re
import stat
import threading
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import Button, Input, OptionList, Static

from ossconsole.config.connector import connector_config_path, load_connector_config, save_connector_config
from ossconsole.config.credential_sources import connector_file, ossutil_file, read_connector_file
from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.metadata import Instance
from ossconsole.config.profiles import FieldError, Settings, load_settings, save_settings, settings_path
from ossconsole.storage.accelerator import ON_WRITE, AcceleratedPath
from ossconsole.storage.jobs.download import Download
from ossconsole.storage.probe.report import ProbeStage, ProbeStep, StepStatus
from ossconsole.tui.app import ConsoleApp
from ossconsole.tui.console import AcceleratorState, NoCredentials, Ready, Unavailable
from ossconsole.tui.kit.dialogs import FormScreen
from ossconsole.tui.kit.glyphs import BRAILLE
from ossconsole.tui.setup.accelerator import _prefixes, accelerator_lines
from ossconsole.tui.setup.panels import ProbeState
from ossconsole.tui.setup.profiles import ProfileForm, ProfilesScreen, moved_endpoint
from ossconsole.tui.setup.screen import SetupScreen
from tests.tui.conftest import AppMaker
from tests.tui.fakes import REAL, SECRET, SIMULATED, START, FakeRun
from tests.tui.fakes_setup import (
    ACCELERATOR,
    REQUEST_ID,
    FakeBucketSetup,
    SetupServices,
    accelerated_unreachable,
    all_good,
    good,
    half_way,
    no_bucket,
)
from tests.tui.screens import past_opening, settle, shown, thread_calls_ended

SMALL, LARGE = (80, 24), (120, 40)


def setup_services(steps: list[ProbeStep] | None = None, **changes: object) -> SetupServices:
    return SetupServices(setup=FakeBucketSetup(steps=steps or [], **changes))  # type: ignore[arg-type]


def plain(app: ConsoleApp) -> str:
    """The words of the screen, also across the lines of a dialog."""
    return " ".join(re.sub("[│─]", " ", shown(app)).split())  # rules of the screen show beside the dialog


async def press(pilot: Pilot[str], *keys: str) -> None:
    """Keys one by one, each followed by what it sets off."""
    for key in keys:
        await pilot.press(key)
        # Dialogs are opened by a worker that lasts as long as they show, so that it cannot be waited for.
        await thread_calls_ended(pilot)


async def confirm(pilot: Pilot[str], word: str) -> None:
    """Types the word that a costly change asks for."""
    pilot.app.screen.query_one("#answer", Input).value = word
    await press(pilot, "enter")


async def type_into(pilot: Pilot[str], field: str, text: str) -> None:
    control = pilot.app.screen.query_one(f"#field-{field}", Input)
    control.focus()
    control.value = text
    await pilot.pause()


def top(app: ConsoleApp, kind: type) -> bool:
    return isinstance(app.screen, kind)


async def until_shown(pilot: Pilot[str], app: ConsoleApp, text: str) -> None:
    for _ in range(100):
        app.tick()
        await pilot.pause()
        if text in plain(app):
            return
    raise AssertionError(f"{text!r} is not in\n{shown(app)}")


@pytest.fixture
def profiles() -> Settings:
    other = msgspec.structs.replace(REAL, name="beijing", region="cn-beijing", bucket="other-bucket")
    settings = (
        Settings()
        .with_profile(REAL, activate=True)
        .with_profile(
            msgspec.structs.replace(other, standard_endpoint="oss-cn-beijing.aliyuncs.com", accelerated_endpoint=None)
        )
    )
    save_settings(settings)
    return settings


async def test_every_value_carries_its_origin_and_the_secret_is_masked(make_app: AppMaker) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await settle(pilot)
        text = shown(app)
    for words in ("imagenet-train", "flag --bucket", "environment OSS_REGION", "LTAI…d9Qz  OSS_ACCESS_KEY_ID in"):
        assert words in text, words
    assert SECRET not in text
    assert "ecs.gn6i-c4g1.xlarge in cn-hangzhou-j" in text
    for endpoint in REAL.endpoints.values():
        assert endpoint in text


async def test_an_instance_in_another_region_is_a_warning_with_its_reason(make_app: AppMaker) -> None:
    app = make_app(setup_services(place=Instance("cn-beijing", "cn-beijing-h", "ecs.gn6i")), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await settle(pilot)
        text = plain(app)
    assert "This instance is in cn-beijing, the bucket in cn-hangzhou: reading costs traffic fees" in text
    assert "cannot be reached from here" in text


@pytest.mark.parametrize(
    ("left_s", "words"),
    [(5 * 3600, "expires in 5:00:00"), (90, "expires in 1:30"), (-1, "expired"), (None, "expiry unknown")],
)
async def test_the_end_of_temporary_credentials_counts_down(make_app: AppMaker, left_s: int | None, words: str) -> None:
    end = None if left_s is None else datetime.fromtimestamp(START + left_s, timezone.utc)
    services = setup_services()
    services.pair = Credentials("STS.abcdefgh", Secret(SECRET), Secret("token"), end, "ECS RAM role")
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await settle(pilot)
        assert words in shown(app)


async def test_renewed_credentials_are_shown(make_app: AppMaker) -> None:
    services = setup_services()
    services.pair = Credentials(
        "STS.first", Secret(SECRET), expiration=datetime.fromtimestamp(START + 60, timezone.utc)
    )
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await settle(pilot)
        assert "expires in 1:00" in shown(app)
        later = datetime.fromtimestamp(START + 7200, timezone.utc)
        services.pair = replace(services.pair, expiration=later)
        app._clock = lambda: START + 40
        await settle(pilot)
        await settle(pilot)
        assert "expires in 1:59:20" in shown(app)


async def test_a_probe_shows_both_endpoints_side_by_side(make_app: AppMaker) -> None:
    app = make_app(setup_services(all_good()), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "c")
        await settle(pilot)
        text = shown(app)
    for words in (
        "✓ DNS 1.0 ✓ TCP 2.0 ✓ TLS 9.0",
        "manifest there",
        "1000+ objects",
        "16.6",
        "15.9, second read 141.0",
    ):
        assert words in text, words
    assert "✓ delete  ✓ list  ✓ put  ✓ get  ✓ multipart" in text


async def test_a_narrow_screen_cuts_no_figure(make_app: AppMaker) -> None:
    app = make_app(setup_services(all_good()), "setup")
    async with app.run_test(size=(60, 40)) as pilot:
        await settle(pilot)
        await press(pilot, "c")
        await settle(pilot)
        text = shown(app)
    assert text.count("✓ 1.0 ✓ 2.0 ✓ 9.0") == 2
    assert " DNS,TCP,TLS ms" in text
    assert "✓ 15.9, again 141.0" in text
    for source in ("OSS_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_ID"):
        assert source in text.partition("nothing in")[2]


async def test_steps_show_as_they_come(make_app: AppMaker) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        screen._probe = ProbeState()
        for step in half_way():
            screen._probe.on_step(step)
        app.tick()
        await pilot.pause()
        text = shown(app)
        assert "✓ 21 ms manifest there" in text
        assert "▶ TLS" in text
        assert screen.check_action("test", ()) is None
        screen._probe.on_step(good(half_way()[-1].kind, ProbeStage.TLS))
        app.tick()
        await pilot.pause()
        assert "✓ TLS 9.0" in shown(app)


async def test_failures_show_with_their_remedy_and_in_full_in_the_report(make_app: AppMaker) -> None:
    app = make_app(setup_services(accelerated_unreachable()), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "c")
        await settle(pilot)
        text = plain(app)
        assert "✗ TCP" in text
        assert "answers only inside the internal network of cn-hangzhou" in text
        assert "✗ delete" in text
        assert "d: full report" in text
        await press(pilot, "d")
        report = shown(app)
        assert REQUEST_ID in report
        assert "AccessDenied" in report
        await press(pilot, "y")
        assert REQUEST_ID in app.clipboard
        await press(pilot, "escape")
        assert top(app, SetupScreen)


async def test_a_probe_that_cannot_begin_says_why(make_app: AppMaker) -> None:
    app = make_app(setup_services(error=ConsoleError("No credentials.", remedy="Enter a key.")), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "c")
        await settle(pilot)
        assert "No credentials. Enter a key." in shown(app)


async def test_a_missing_bucket_is_created_once_its_name_was_typed(make_app: AppMaker) -> None:
    services = setup_services(no_bucket())
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await settle(pilot)  # it is tested without a key
        assert app.screen.check_action("create_bucket", ()) is True
        await press(pilot, "b")
        await confirm(pilot, "imagenet")
        assert services.setup.asked == []
        await confirm(pilot, "imagenet-train")
        await pilot.app.workers.wait_for_complete()
    assert services.setup.asked == ["bucket"]


async def test_the_accelerator_is_created_behind_its_cost_and_a_typed_name(make_app: AppMaker) -> None:
    services = setup_services(state=AcceleratorState(None))
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "a")
        await until_shown(pilot, app, "Create an accelerator")
        await type_into(pilot, "quota_gb", "100")
        await pilot.pause()
        assert "CNY 0.10 per hour" in plain(app)
        await type_into(pilot, "zone", "cn-hangzhou-j")
        await press(pilot, "ctrl+s")
        question = plain(app)
        assert "estimated CNY 0.10 per hour, CNY 70 per month, also while idle" in question
        await press(pilot, "escape")
        assert services.setup.asked == []
        await until_shown(pilot, app, "The bucket has none")
        await press(pilot, "a")
        await until_shown(pilot, app, "Create an accelerator")
        await type_into(pilot, "zone", "cn-hangzhou-j")
        await press(pilot, "ctrl+s")
        await confirm(pilot, "imagenet-train")
        await pilot.app.workers.wait_for_complete()
    (wanted,) = services.setup.asked
    assert (wanted.zone, wanted.quota_gb) == ("cn-hangzhou-j", 500)  # type: ignore[attr-defined]
    assert [path.prefix for path in wanted.paths] == ["dataset/imagenet/ILSVRC/Data/"]  # type: ignore[attr-defined]


async def test_an_accelerator_that_is_there_can_be_deleted(make_app: AppMaker) -> None:
    services = setup_services()
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "a")
        await until_shown(pilot, app, "500 GB: estimated CNY")
        await press(pilot, "right", "right", "enter")
        await confirm(pilot, "imagenet-train")
        await pilot.app.workers.wait_for_complete()
    assert services.setup.asked == ["delete cn-hangzhou-j"]


MIXED = msgspec.structs.replace(
    ACCELERATOR,
    paths=(AcceleratedPath("dataset/imagenet/", ON_WRITE), AcceleratedPath("a, b/"), AcceleratedPath("old/")),
)


async def open_change_form(pilot: Pilot[str], app: ConsoleApp) -> None:
    await settle(pilot)
    await press(pilot, "a")
    await until_shown(pilot, app, "500 GB: estimated CNY")
    await press(pilot, "right", "enter")
    await until_shown(pilot, app, "Change the accelerator in cn-hangzhou-j")


async def test_a_change_of_the_size_keeps_paths_and_their_policies(make_app: AppMaker) -> None:
    services = setup_services(state=AcceleratorState(MIXED))
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await open_change_form(pilot, app)
        await type_into(pilot, "quota_gb", "2048")
        await press(pilot, "ctrl+s")
        question = plain(app)
        assert "size: 500 → 2,048 GB" in question
        assert "price: CNY 0.49 → 1.99 per hour" in question
        assert "Everything else stays as it is." in question
        await confirm(pilot, "imagenet-train")
        await pilot.app.workers.wait_for_complete()
    assert services.setup.asked == [msgspec.structs.replace(MIXED, quota_gb=2048)]


async def test_a_change_of_paths_names_what_is_lost_and_costs_no_typing(make_app: AppMaker) -> None:
    services = setup_services(state=AcceleratorState(MIXED))
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await open_change_form(pilot, app)
        assert app.screen.query_one("#field-paths", Input).value == 'dataset/imagenet/, "a, b/", old/'
        await type_into(pilot, "paths", 'dataset/imagenet/, "a, b/", new/')
        await press(pilot, "ctrl+s")
        question = plain(app)
        assert "no longer cached: old/" in question
        assert "cached from now on: new/ (write-back)" in question
        await press(pilot, "right", "enter")
        await pilot.app.workers.wait_for_complete()
    (wanted,) = services.setup.asked
    kept = (*MIXED.paths[:2], AcceleratedPath("new/"))
    assert wanted == msgspec.structs.replace(MIXED, paths=kept)


async def test_an_untouched_form_changes_nothing(make_app: AppMaker) -> None:
    services = setup_services(state=AcceleratorState(MIXED))
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await open_change_form(pilot, app)
        await press(pilot, "ctrl+s")
        await settle(pilot)
        assert ["nothing was changed" in notice.message for notice in app._notifications] == [True]
    assert services.setup.asked == []


async def test_an_accelerator_that_could_not_be_read_is_not_replaced(make_app: AppMaker) -> None:
    services = setup_services()
    services.setup.refusal = ConsoleError("AccessDenied while reading the accelerator.", remedy="Allow it in RAM.")
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "a")
        await settle(pilot)
        assert ["AccessDenied while reading" in notice.message for notice in app._notifications] == [True]
        assert isinstance(app.screen, SetupScreen)


async def test_paths_that_oss_did_not_send_cannot_be_changed(make_app: AppMaker) -> None:
    unread = msgspec.structs.replace(ACCELERATOR, paths=(), paths_known=False)
    app = make_app(setup_services(state=AcceleratorState(unread)), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "a")
        await until_shown(pilot, app, "OSS did not send its paths")
        assert [str(button.label) for button in app.screen.query(Button)] == ["Cancel", "Delete"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("quota_gb", "10", "50 to 204,800"),
        ("quota_gb", "١٠٠", "50 to 204,800"),
        pytest.param("quota_gb", "9" * 5000, "50 to 204,800", id="long"),
        ("zone", " ", "such as cn-hangzhou-j"),
        ("zone", "cn-beijing-h", "not a zone of cn-hangzhou"),
    ],
)
async def test_a_wrong_size_or_zone_keeps_the_form_open(make_app: AppMaker, field: str, value: str, words: str) -> None:
    app = make_app(setup_services(state=AcceleratorState(None)), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "a")
        await until_shown(pilot, app, "Create an accelerator")
        app.screen.query_one(f"#field-{field}", Input).value = value
        await press(pilot, "ctrl+s")
        assert top(app, FormScreen)
        assert words in str(app.screen.query_one(".hint", Static).render())
        assert app.focused is not None
        assert app.focused.id == f"field-{field}"


async def test_the_zone_of_a_new_accelerator_is_that_of_the_endpoint(make_app: AppMaker) -> None:
    endpoint = "https://cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com"
    services = setup_services(state=AcceleratorState(None))
    services.profile = msgspec.structs.replace(REAL, accelerated_endpoint=endpoint)
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "a")
        await until_shown(pilot, app, "Create an accelerator")
        assert app.screen.query_one("#field-zone", Input).value == "cn-hangzhou-j"
        await type_into(pilot, "zone", "cn-hangzhou-k")
        await press(pilot, "ctrl+s")
        assert "endpoint of the profile is that of cn-hangzhou-j" in str(app.screen.query_one(".hint", Static).render())


async def test_nothing_can_be_changed_read_only(make_app: AppMaker) -> None:
    services = setup_services(no_bucket())
    services.readonly = True
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "c")
        await settle(pilot)
        assert app.screen.check_action("create_bucket", ()) is False
        assert app.screen.check_action("accelerator", ()) is None


async def test_another_profile_is_used_and_stays_active(make_app: AppMaker, profiles: Settings) -> None:
    services = setup_services()
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "p")
        assert top(app, ProfilesScreen)
        text = shown(app)
        assert "▶ imagenet-hz" in text
        assert "oss://other-bucket in cn-beijing" in text
        await press(pilot, "down", "enter")
        await settle(pilot)
    assert services.used == ["beijing"]
    assert load_settings().active == "beijing"


async def test_a_busy_console_keeps_its_profile(make_app: AppMaker, profiles: Settings) -> None:
    services = setup_services()
    services.busy = ConsoleError("A run is still going on.", remedy="Stop it.")
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL, notifications=True) as pilot:
        await settle(pilot)
        await press(pilot, "p", "down", "enter")
        await settle(pilot)
        assert "A run is still going on. Stop it." in plain(app)
    assert load_settings().active == "imagenet-hz"


async def test_the_sandbox_stays_while_a_job_uses_it(make_app: AppMaker, profiles: Settings) -> None:
    services = setup_services()
    services.stand(Ready(profile=SIMULATED))
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL, notifications=True) as pilot:
        await settle(pilot)
        job = Download(Mock(), [], "", Path("/data/down"))
        app.jobs.append(job)
        await press(pilot, "r")
        await settle(pilot)
        said = [notice.message for notice in app._notifications]
        assert said == [f"The sandbox is still used: {job.title}. Wait for its end, or cancel it: 2, then J."]
        assert services.reloads == 0
        services.stand(Ready(profile=REAL))  # a bucket stays where it is, and its jobs continue
        await settle(pilot)
        await press(pilot, "r")
        await settle(pilot)
    assert services.reloads == 1


async def test_profiles_are_copied_renamed_and_deleted(make_app: AppMaker, profiles: Settings) -> None:
    services = setup_services()
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "p", "c", "ctrl+s")
        assert "imagenet-hz-copy" in load_settings().profiles
        await press(pilot, "r")
        await type_into(pilot, "name", "second")
        await press(pilot, "ctrl+s")
        assert list(load_settings().profiles) == ["imagenet-hz", "beijing", "second"]
        await press(pilot, "d", "enter")
        assert "second" in load_settings().profiles
        await press(pilot, "d", "right", "enter")
        assert "second" not in load_settings().profiles
        await press(pilot, "escape")
    assert services.used == []


async def test_a_used_name_is_refused(make_app: AppMaker, profiles: Settings) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "p", "c")
        await type_into(pilot, "name", "beijing")
        await press(pilot, "ctrl+s")
        assert "already" in shown(app)
    assert load_settings() == profiles


async def test_deleting_the_profile_in_use_leads_to_the_sandbox(make_app: AppMaker, profiles: Settings) -> None:
    services = setup_services()
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "p", "d", "right", "enter", "escape")
        await settle(pilot)
    assert services.used == ["sandbox"]
    assert load_settings().active == ""


async def test_a_new_profile_gets_its_endpoints_from_the_region(make_app: AppMaker) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "p", "n")
        assert top(app, ProfileForm)
        await type_into(pilot, "name", "mine")
        await type_into(pilot, "region", "cn-hangzhou")
        await type_into(pilot, "bucket", "my-bucket")
        app.screen.query_one("#field-accelerated_endpoint").focus()
        await press(pilot, "down")
        assert isinstance(app.focused, OptionList)
        assert "cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com" in shown(app)
        await press(pilot, "enter", "ctrl+s")
        assert top(app, ProfilesScreen)
    profile = load_settings().profile("mine")
    assert profile.standard_endpoint == "https://oss-cn-hangzhou-internal.aliyuncs.com"
    assert profile.accelerated_endpoint == "https://cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com"


async def test_plain_http_to_another_machine_asks_first(make_app: AppMaker, profiles: Settings) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "e")
        app.screen.query_one("#field-accelerated_endpoint", Input).value = "http://cache.example.com"
        await press(pilot, "ctrl+s")
        assert top(app, ProfileForm)
        assert "has no TLS" in plain(app)
        assert "save again to allow plain HTTP" in plain(app)
        await press(pilot, "ctrl+s")
        await settle(pilot)
        assert not top(app, ProfileForm)
    saved = load_settings().profile(profiles.active)
    assert saved.accelerated_endpoint == "http://cache.example.com"
    assert saved.plain_http == "allowed"


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("oss-accelerate.aliyuncs.com", "transfer acceleration"),
        ("oss-cn-hangzhou.aliyuncs.com", "Is this the accelerated endpoint?"),
        ("cn-beijing-h-internal.oss-data-acc.aliyuncs.com", "but the region above is cn-hangzhou"),
        ("a b", "is not an endpoint"),
    ],
)
async def test_an_endpoint_is_recognised_as_it_is_typed(
    make_app: AppMaker, profiles: Settings, endpoint: str, words: str
) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "e")
        field = app.screen.query_one("#field-accelerated_endpoint", Input)
        field.focus()
        field.value = endpoint
        await pilot.pause()
        assert words in plain(app)


async def test_a_wrong_value_is_said_at_its_field(make_app: AppMaker, profiles: Settings) -> None:
    services = setup_services()
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "e")
        await type_into(pilot, "bucket", "No Bucket")
        await press(pilot, "ctrl+s")
        assert "is not a bucket name" in shown(app)
        assert app.focused is not None
        assert app.focused.id == "field-bucket"
        await type_into(pilot, "bucket", "good-bucket")
        await press(pilot, "ctrl+s")
        await settle(pilot)
    assert load_settings().profile("imagenet-hz").bucket == "good-bucket"
    assert (services.reloads, services.used) == (1, [])


async def test_what_a_test_does_is_whole_in_the_narrowest_console(make_app: AppMaker) -> None:
    services = setup_services()
    services.stand(Ready(profile=SIMULATED))
    app = make_app(services, "setup")
    async with app.run_test(size=(60, 24)) as pilot:
        await settle(pilot)
        assert "16 sample reads; then this key's permissions for checkpoints." in plain(app)


async def test_a_broken_settings_file_is_reported(make_app: AppMaker) -> None:
    settings_path().write_text("[profiles.a]\nregio = 'x'\n")
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL, notifications=True) as pilot:
        await settle(pilot)
        await press(pilot, "e")
        assert ["line 2" in notice.message for notice in app._notifications] == [True]


async def test_a_key_is_written_where_the_connector_reads_it(make_app: AppMaker) -> None:
    services = setup_services()
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL, notifications=True) as pilot:
        await settle(pilot)
        await press(pilot, "k")
        await type_into(pilot, "access_key_id", "LTAI5tTyped")
        await type_into(pilot, "access_key_secret", "typed-sentinel")
        await pilot.pause()
        assert "typed-sentinel" not in shown(app)
        await press(pilot, "ctrl+s")
        await settle(pilot)
        assert "typed-sentinel" not in shown(app)
    written = read_connector_file(connector_file())
    assert written is not None
    assert (written.access_key_id, written.access_key_secret) == ("LTAI5tTyped", Secret("typed-sentinel"))
    assert stat.S_IMODE(connector_file().stat().st_mode) == 0o400
    assert (services.reloads, services.used) == (1, [])


@pytest.mark.parametrize(
    ("key_id", "secret", "end", "words"),
    [
        ("", "s", "", "AccessKey ID is missing"),
        ("a", "", "", "secret is missing"),
        ("a", "s", "tomorrow", "is not a valid time"),
    ],
)
async def test_an_invalid_key_is_refused(make_app: AppMaker, key_id: str, secret: str, end: str, words: str) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "k")
        for field, text in (("access_key_id", key_id), ("access_key_secret", secret), ("expiration", end)):
            await type_into(pilot, field, text)
        await press(pilot, "ctrl+s")
        assert words in shown(app)
    assert not connector_file().exists()


async def test_the_key_pair_of_another_tool_is_imported(make_app: AppMaker) -> None:
    ossutil_file().write_text(f"[default]\naccessKeyID=LTAI5tOssutil\naccessKeySecret={SECRET}\n")
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await settle(pilot)
        await press(pilot, "k", "enter", "down", "enter")
        assert "ossutil" in shown(app)
        assert SECRET not in shown(app)
        await press(pilot, "ctrl+s")
        await settle(pilot)
    written = read_connector_file(connector_file())
    assert written is not None
    assert written.access_key_id == "LTAI5tOssutil"


async def test_the_connectors_configuration_is_edited_in_a_form(make_app: AppMaker) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "o")
        await type_into(pilot, "datasetConfig-prefetchConcurrency", "48")
        await pilot.pause()
        assert "parallel reads of one reader process; default 64" in shown(app)
        await type_into(pilot, "logLevel", "7")
        await press(pilot, "ctrl+s")
        assert "0 to 3" in shown(app)
        await type_into(pilot, "logLevel", "2")
        await press(pilot, "ctrl+s")
        await settle(pilot)
        assert top(app, SetupScreen)
    values = load_connector_config()
    assert (values["logLevel"], values["datasetConfig.prefetchConcurrency"]) == (2, 48)


async def test_a_value_that_just_fits_its_field_keeps_its_first_character(make_app: AppMaker) -> None:
    save_connector_config({"logPath": "/var/log/oss-connector/connector.log"})
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "o")
        await settle(pilot)
        assert app.screen.query_one("#field-logPath", Input).content_size.width == 36
        assert " /var/log/oss-connector/connector.log" in shown(app)


async def test_large_screens_show_accelerator_connector_and_sources(make_app: AppMaker, home: Path) -> None:
    services = setup_services(all_good())
    app = make_app(services, "setup")
    async with app.run_test(size=LARGE) as pilot:
        await settle(pilot)
        await press(pilot, "c")
        await settle(pilot)
        await settle(pilot)
        text = shown(app)
    for words in ("imagenet-train_data-acc", "dataset/imagenet/ (write-back)", "connector.json", "OSS_ACCESS_KEY_ID"):
        assert words in text, words


async def test_an_accelerator_of_another_zone_is_shown_with_its_cost(make_app: AppMaker) -> None:
    other = msgspec.structs.replace(ACCELERATOR, zone="cn-hangzhou-k", quota_gb=1000)
    app = make_app(setup_services(all_good(), state=AcceleratorState(None, others=(other,))), "setup")
    async with app.run_test(size=LARGE) as pilot:
        await settle(pilot)
        await press(pilot, "c")
        await until_shown(pilot, app, "Also billed: 1,000 GB in cn-hangzhou-k (estimated CNY 0.97 per hour")


async def test_a_profile_without_a_way_in_can_still_be_set_up(make_app: AppMaker) -> None:
    services = setup_services(all_good())
    services.stand(Unavailable(profile=REAL, reason="~/.alibabacloud/credentials is not JSON."))
    app = make_app(services, "setup")
    async with app.run_test(size=LARGE) as pilot:
        await settle(pilot)
        text = plain(app)
        assert "imagenet-hz: failed" in text
        assert "imagenet-train" in text
        assert "~/.alibabacloud/credentials is not JSON." in text
        assert "environment OSS_ACCESS_KEY_ID" in text
        await press(pilot, "c")
        await settle(pilot)
        assert "✓ 21 ms manifest there" in plain(app)
        await press(pilot, "k")
        assert top(app, FormScreen)


async def test_without_credentials_it_says_what_to_do(make_app: AppMaker) -> None:
    services = setup_services()
    services.stand(NoCredentials(profile=REAL, searched=("environment OSS_ACCESS_KEY_ID (not set)",)))
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        text = plain(app)
        for words in ("imagenet-hz: no credentials", "k enter an AccessKey", "OSS_ACCESS_KEY_ID (not set)"):
            assert words in text, words
        assert "Setup screen" not in text
        assert "reading" not in text
        assert app.screen.check_action("accelerator", ()) is None
        services.stand(Ready(profile=REAL))  # as after `k` or `r`
        await settle(pilot)
        await settle(pilot)
        assert "LTAI…d9Qz" in plain(app)


async def test_a_profile_that_names_its_source_is_not_sent_to_enter_a_key(make_app: AppMaker) -> None:
    services = setup_services()
    named = msgspec.structs.replace(REAL, credentials="aliyun:nope")
    services.stand(NoCredentials(profile=named, searched=("aliyun nope ~/.aliyun/config.json (none)",)))
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        for words in ("none from aliyun:nope; press e", "e use another source than aliyun:nope"):
            assert words in plain(app), words
        await press(pilot, "2")
        await settle(pilot)
        assert "Press 1, then e." in plain(app)


async def test_the_keys_for_a_profile_say_why_they_leave_the_sandbox_alone(make_app: AppMaker) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL, notifications=True) as pilot:
        await settle(pilot)
        await press(pilot, "p", "home")
        for count, key in enumerate("ecrd", start=1):
            await press(pilot, key)
            assert ["built in" in notice.message for notice in app._notifications] == [True] * count


async def test_a_profile_that_a_run_uses_keeps_its_name(make_app: AppMaker, profiles: Settings) -> None:
    services = setup_services()
    services.run = FakeRun()
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL, notifications=True) as pilot:
        await settle(pilot)
        await press(pilot, "p")
        for count, key in enumerate("rd", start=1):
            await press(pilot, key)
            assert top(app, ProfilesScreen)
            assert ["uses the profile imagenet-hz" in notice.message for notice in app._notifications] == [True] * count
        await press(pilot, "down", "d")  # another one
        assert not top(app, ProfilesScreen)
    assert load_settings() == profiles


async def test_no_endpoint_is_suggested_for_a_region_that_cannot_exist(make_app: AppMaker) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "p", "n")
        for region, suggested in (("hangzhou", False), ("cn-hangzhou", True)):
            await type_into(pilot, "region", region)
            app.screen.query_one("#field-standard_endpoint", Input).focus()
            await pilot.pause()
            assert ("oss-cn-hangzhou.aliyuncs.com" in plain(app)) is suggested
            assert "oss-hangzhou.aliyuncs.com" not in plain(app)


async def test_an_endpoint_that_was_saved_before_and_cannot_be_right_is_shown(make_app: AppMaker) -> None:
    services = setup_services()
    services.stand(
        Ready(profile=msgspec.structs.replace(REAL, standard_endpoint="https://oss-cn-beijing.aliyuncs.com"))
    )
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        assert "is in cn-beijing, and the bucket in cn-hangzhou." in plain(app)


@pytest.mark.parametrize(
    ("field", "endpoint", "words"),
    [
        ("standard_endpoint", "cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com", "not the bucket's own"),
        ("accelerated_endpoint", "oss-cn-hangzhou-internal.aliyuncs.com", "caches nothing"),
        ("accelerated_endpoint", "cn-shanghai-g-internal.oss-data-acc.aliyuncs.com", "is in cn-shanghai"),
    ],
)
async def test_an_endpoint_that_cannot_be_right_is_not_saved(
    make_app: AppMaker, profiles: Settings, field: str, endpoint: str, words: str
) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "e")
        await type_into(pilot, field, endpoint)
        await press(pilot, "ctrl+s")
        assert top(app, ProfileForm)
        assert words in plain(app)
        assert app.focused is not None
        assert app.focused.id == f"field-{field}"
    assert load_settings() == profiles


async def test_command_line_options_still_apply_to_another_profile(make_app: AppMaker, profiles: Settings) -> None:
    services = setup_services()
    app = make_app(services, "setup")
    async with app.run_test(size=LARGE) as pilot:
        await settle(pilot)
        await press(pilot, "p", "down", "enter")
        await settle(pilot)
        (notification,) = app._notifications
        assert notification.message.endswith("Command-line options still apply: --bucket.")
    assert services.used == ["beijing"]
    assert load_settings().active == "beijing"
    assert profiles.active == REAL.name


def test_a_probe_orders_its_problems() -> None:
    probe = ProbeState()
    for step in accelerated_unreachable():
        probe.on_step(step)
    assert [step.status for step in probe.problems] == [StepStatus.FAIL, StepStatus.FAIL]
    assert not probe.refused_with("NoSuchBucket")
    assert probe.running
    probe.finish(problem="over")
    assert not probe.running


async def test_what_does_not_fit_is_scrolled_to(make_app: AppMaker) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await settle(pilot)
        assert "Credentials on this machine" not in shown(app)
        await press(pilot, *["pagedown"] * 4)
        await settle(pilot)
        assert "Credentials on this machine" in shown(app)


@pytest.mark.parametrize(
    ("endpoint", "kind", "moved"),
    [
        ("", EndpointKind.STANDARD, "https://oss-cn-beijing-internal.aliyuncs.com"),
        ("", EndpointKind.ACCELERATED, ""),
        ("oss-cn-hangzhou.aliyuncs.com", EndpointKind.STANDARD, "https://oss-cn-beijing.aliyuncs.com"),
        (
            "https://oss-cn-hangzhou-internal.aliyuncs.com",
            EndpointKind.STANDARD,
            "https://oss-cn-beijing-internal.aliyuncs.com",
        ),
        ("https://my.own.host", EndpointKind.STANDARD, "https://my.own.host"),
    ],
)
def test_an_endpoint_follows_the_region(endpoint: str, kind: EndpointKind, moved: str) -> None:
    assert moved_endpoint(endpoint, kind, "cn-beijing") == moved


async def test_region_and_endpoints_follow_each_other_in_the_form(make_app: AppMaker, profiles: Settings) -> None:
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await press(pilot, "e")
        await settle(pilot)
        form = app.screen
        assert isinstance(form, ProfileForm)
        await type_into(pilot, "region", "cn-beijing")
        await settle(pilot)
        assert form.value("standard_endpoint") == "https://oss-cn-beijing-internal.aliyuncs.com"
        assert "cn-beijing" in form.value("accelerated_endpoint")
        form.control("standard_endpoint").focus()
        await type_into(pilot, "standard_endpoint", "oss-cn-shanghai-internal.aliyuncs.com")
        await settle(pilot)
        assert form.value("region") == "cn-shanghai"
        assert "cn-shanghai" in form.value("accelerated_endpoint")


def test_the_accelerator_panel_names_keys_only_where_they_can_be_pressed() -> None:
    (line,) = accelerator_lines(None, "", BRAILLE, 80, keys=True)
    assert line.text == " Not read yet. Press c to test, a to create or change it."
    (line,) = accelerator_lines(None, "", BRAILLE, 80, keys=False)
    assert line.text == " Not read yet."


async def test_a_broken_connector_configuration_is_reported(make_app: AppMaker) -> None:
    connector_config_path().parent.mkdir(parents=True, exist_ok=True)
    connector_config_path().write_text("{")
    app = make_app(setup_services(), "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "o")
        await settle(pilot)
        assert top(app, SetupScreen)
        assert "is not JSON" in "".join(notice.message for notice in app._notifications)


async def test_a_change_goes_to_the_bucket_that_its_question_names(make_app: AppMaker) -> None:
    services, other = setup_services(), FakeBucketSetup()
    first = services.setup
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await press(pilot, "a")
        await until_shown(pilot, app, "500 GB: estimated CNY")
        services.profile, services.setup = msgspec.structs.replace(REAL, name="other", bucket="other"), other
        app.tick()
        await press(pilot, "right", "right", "enter")
        await confirm(pilot, "imagenet-train")
        await pilot.app.workers.wait_for_complete()
    assert (first.asked, other.asked) == (["delete cn-hangzhou-j"], [])


async def test_what_was_read_of_the_profile_before_is_not_shown(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, asked, held = setup_services(), threading.Event(), threading.Event()
    services.pair = Credentials("LTAI5tOfTheFirstAbc1", Secret(SECRET))
    credentials = services.credentials

    def slowly() -> Credentials:
        found = credentials()
        if not asked.is_set():
            asked.set()
            assert held.wait(20)
        return found

    monkeypatch.setattr(services, "credentials", slowly)
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await past_opening(pilot)
        await asyncio.to_thread(asked.wait, 20)
        services.profile = msgspec.structs.replace(REAL, name="other")
        services.pair = Credentials("LTAI5tOfTheOtherXyz2", Secret(SECRET))
        await until_shown(pilot, app, "LTAI…Xyz2")
        held.set()
        await settle(pilot)
        assert "LTAI…Xyz2" in plain(app)


def test_paths_that_are_too_long_for_a_field_are_refused() -> None:
    with pytest.raises(FieldError, match="cannot be read"):
        _prefixes("x" * 140_000, set())


async def test_a_reload_shows_what_there_is_after_it(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    services, held = setup_services(), threading.Event()

    def slowly() -> None:
        assert held.wait(20)
        services.pair = Credentials("LTAI5tOfTheOtherXyz2", Secret(SECRET))

    monkeypatch.setattr(services, "reload", slowly)
    app = make_app(services, "setup")
    async with app.run_test(size=SMALL) as pilot:
        await settle(pilot)
        await pilot.press("r")
        app.tick()
        held.set()
        await settle(pilot)
        await until_shown(pilot, app, "LTAI…Xyz2")
