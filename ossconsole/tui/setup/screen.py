"""SetupScreen: the profile and its credentials, probe that they work, accelerator and connector."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll

from ossconsole.config.credential_sources import SourceState, list_sources
from ossconsole.config.credentials import mask_key_id
from ossconsole.config.endpoints import EndpointKind, region_caution
from ossconsole.config.errors import ConsoleError
from ossconsole.config.metadata import Instance
from ossconsole.config.profiles import (
    FLAGS_NAME,
    SANDBOX_NAME,
    Profile,
    endpoint_problem,
    load_settings,
    save_settings,
)
from ossconsole.config.resolve import OriginKind
from ossconsole.storage.accelerator import Accelerator
from ossconsole.storage.probe.report import ProbeStage, StepStatus
from ossconsole.tui.console import AcceleratorState, BucketAdmin, NoCredentials, Starting, Unavailable
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen, TypedConfirmScreen
from ossconsole.tui.kit.jobs import job_line, newest_warm_up, warm_up
from ossconsole.tui.kit.screen import ConsoleModal, ConsoleScreen, notice, profile_label
from ossconsole.tui.kit.text import Line, heading, safe, wrap
from ossconsole.tui.setup import panels
from ossconsole.tui.setup.accelerator import (
    AcceleratorForm,
    accelerator_lines,
    accelerator_text,
    change_question,
    creation_question,
    deletion_question,
)
from ossconsole.tui.setup.connector_form import ConnectorForm
from ossconsole.tui.setup.panels import ProbeState, ReportScreen
from ossconsole.tui.setup.profiles import KeyForm, ProfileForm, ProfilesScreen

_Change = Callable[[Callable[[BucketAdmin], None], str], Awaitable[None]]
_UNLIMITED = 1000  # rows: the panels scroll
_CREDENTIALS_READ_EVERY_S = 30.0  # only temporary ones, which their source renews before they expire


@dataclass
class _Known:
    """What was read of one profile: a thread that ends after a change of the profile writes into the former one's."""

    credentials: panels.CredentialState = field(default_factory=panels.CredentialState)
    accelerator: AcceleratorState | None = None
    accelerator_problem: str = ""


class SetupScreen(ConsoleScreen):
    """Threads read the state of the bucket and of this machine; every change goes through a dialog."""

    SCOPE = "setup"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("setup")]

    def __init__(self) -> None:
        super().__init__()
        self._shown_for: tuple[object, bool] | None = None
        self._known = _Known()
        self._credentials_read_at = 0.0
        self._probe: ProbeState | None = None
        self._tested: list[Profile] = []
        self._instance: Instance | None = None
        self._connector = panels.ConnectorState()
        self._sources: list[SourceState] = []

    def body(self) -> ComposeResult:
        with VerticalScroll(id="setup-scroll"):
            yield Panel(self._profile, id="setup-profile")
            yield Panel(self._test_lines, id="setup-test")
            yield Panel(self._details, id="setup-details")

    def on_mount(self) -> None:
        """Let the arrows scroll what does not fit."""
        self.query_one(VerticalScroll).focus()

    def tick(self) -> None:
        """Read again after a change of the profile, and paint."""
        state = self.services.state
        if (state.profile, state.usable) != self._shown_for:
            self._shown_for = state.profile, state.usable
            self._reset()
            self._credentials_read_at = self.console.now
            self._read_machine(self._known, usable=state.usable)
        elif (
            self._known.credentials.found
            and self._known.credentials.found.expiration
            and self.console.now - self._credentials_read_at > _CREDENTIALS_READ_EVERY_S
        ):
            self._credentials_read_at = self.console.now  # not when they are there: each tick would ask a slow source
            self._refresh_credentials(self._known)
        self._test_once()
        for panel in self.query(Panel):
            panel.styles.height = len(panel.paint(panel.size.width or self.size.width, _UNLIMITED))
            panel.redraw()

    def _test_once(self) -> None:
        """Test a bucket when it shows for the first time; then `c` does. The sandbox works as it is."""
        profile = self.services.profile
        if profile is not None and not profile.simulated and profile not in self._tested:
            self._tested.append(profile)
            self.action_test()

    def _reset(self) -> None:
        """Discard everything that belongs to the previous profile."""
        self._known, self._probe = _Known(), None
        self.redraw_bars()

    # Reading

    @work(thread=True, exclusive=True, group="credentials", exit_on_error=False)
    def _refresh_credentials(self, known: _Known) -> None:
        self._read_credentials(known)

    def _read_credentials(self, known: _Known) -> None:
        """Blocks; call it in a thread."""
        try:
            known.credentials = panels.CredentialState(found=self.services.credentials())
        except ConsoleError as error:
            known.credentials = panels.CredentialState(problem=str(error))

    @work(thread=True, exclusive=True, group="machine", exit_on_error=False)
    def _read_machine(self, known: _Known, *, usable: bool) -> None:
        if usable:
            self._read_credentials(known)
        self._connector = panels.read_connector()
        self._sources = list_sources()
        try:
            self._instance = self.services.bucket_setup().instance()
        except ConsoleError:  # not on an instance, or no profile is known yet
            self._instance = None

    @work(thread=True, exclusive=True, group="test", exit_on_error=False)
    def _run_test(self, probe: ProbeState, known: _Known) -> None:
        try:
            setup = self.services.bucket_setup()
            probe.finish(setup.probe(probe.on_step))
        except ConsoleError as error:
            probe.finish(problem=str(error))
            return
        signed = probe.step(EndpointKind.ACCELERATED, ProbeStage.SIGNED)
        if signed is not None and signed.status in {StepStatus.OK, StepStatus.WARN}:
            _read_accelerator(setup, known)

    # Drawing

    def _profile(self, width: int, _height: int) -> Sequence[Line]:
        state = self.services.state
        profile = state.profile
        settings = self.services.settings()
        origin = panels.common_origin(settings)
        settings_note = f"settings: {origin}" if origin not in self._title.lower() else ""  # "" is in every title
        notes = [part for part in (self._instance_label(), settings_note) if part]
        lines = [heading(self._title, width, self.glyphs.rule, "  ".join(notes), *notes)]
        if profile is None:
            reason = notice(state, self.glyphs, width)
            return lines + (reason[:-1] if isinstance(state, Unavailable) else reason)  # the key to retry shows below
        now = self.console.now
        lines += panels.profile_lines(settings, self._shown_credentials, self.glyphs, now, width)
        if (problem := endpoint_problem(profile)) is not None:
            said = safe(f"{problem.message} {problem.remedy}")
            lines += [Line((f" {part}", "bad")) for part in wrap(said, width - 2)]
        if self._instance is not None and not profile.simulated:
            caution = region_caution(self._instance.region, profile.region, profile.endpoints.values())
            lines += [Line((f" {part}", "warn")) for part in wrap(safe(caution), width - 2) if part]
        return lines

    @property
    def _title(self) -> str:
        profile = self.services.state.profile
        if profile is None:
            return f"Profile {SANDBOX_NAME}"
        if profile.name == FLAGS_NAME:
            return "Command line, without a profile"
        simulated = ": simulated, on this machine" if profile.simulated else ""
        return f"Profile {profile.name}{simulated}"

    @property
    def _shown_credentials(self) -> panels.CredentialState:
        state = self.services.state
        if isinstance(state, NoCredentials):
            return panels.CredentialState(problem=panels.missing_credentials(state.profile))
        return (
            panels.CredentialState(problem=state.reason) if isinstance(state, Unavailable) else self._known.credentials
        )

    def _instance_label(self) -> str:
        instance = self._instance
        return f"{instance.instance_type} in {instance.zone or instance.region}" if instance else ""

    def _test_lines(self, width: int, height: int) -> Sequence[Line]:
        state, probe = self.services.state, self._probe
        note = ""
        if probe is not None:
            note = f"{probe.seconds:.1f} s" if not probe.running else f"testing, {probe.seconds:.0f} s"
        if probe is not None and probe.problems:
            note += "  d: full report"
        lines = [self._heading(f"Test{self._simulated}", width, note)]
        if state.profile is not None and (state.usable or probe is not None):
            lines += panels.test_lines(state.profile, probe, self.glyphs, width, height - 1)
        else:
            lines += panels.unusable(state, self.glyphs, width)
        return lines[:height]

    @property
    def _simulated(self) -> str:
        profile = self.services.profile
        return " (simulated)" if profile is not None and profile.simulated else ""

    def _details(self, width: int, height: int) -> Sequence[Line]:
        sources = [
            (str(state.source), mask_key_id(state.credentials.access_key_id) if state.credentials else state.problem)
            for state in self._sources
            if state.exists
        ]
        missing = [str(state.source) for state in self._sources if not state.exists]
        known, glyphs, warming = self._known, self.glyphs, newest_warm_up(self.console)
        keys = all(self.check_action(action, ()) is True for action in ("test", "accelerator"))
        lines = [
            self._heading(f"Accelerator{self._simulated}", width),
            *accelerator_lines(known.accelerator, known.accelerator_problem, glyphs, width, keys=keys),
            *([job_line(warming, width, glyphs)] if warming else []),
            self._heading("Connector", width),
            *panels.connector_lines(self._connector, glyphs, width),
            self._heading("Credentials on this machine", width),
            *panels.source_lines(sources, missing, glyphs, width),
        ]
        return lines[:height]

    def _heading(self, title: str, width: int, note: str = "") -> Line:
        return heading(title, width, self.glyphs.rule, note)

    # Actions

    def check_action(self, action: str, _parameters: tuple[object, ...]) -> bool | None:
        """Hide or disable what the state of the bucket does not allow."""
        profile, state = self.services.profile, self.services.state
        if action == "create_bucket":
            missing = self._probe is not None and self._probe.refused_with("NoSuchBucket")
            return missing and not self.services.readonly
        if action == "report":
            return self._probe is not None
        if action == "test":
            # Also without credentials: the connection to the endpoints can be tested.
            known = state.profile is not None and (state.usable or not isinstance(state, Starting))
            return True if known and not (self._probe and self._probe.running) else None
        if action == "warm_up":
            return True if profile is not None and profile.accelerated_endpoint else None
        if action == "accelerator":
            return True if profile is not None and profile.accelerated_endpoint and not self.services.readonly else None
        return True

    def action_test(self) -> None:
        """Test both endpoints and the permissions of the key."""
        self._probe = ProbeState()
        self._run_test(self._probe, self._known)
        self.tick()

    def action_report(self) -> None:
        """Show the full report of the test."""
        if self._probe is not None:
            self.app.push_screen(ReportScreen(self._probe))

    def action_reload(self) -> None:
        """Read settings and credentials again."""
        self._open_profile()

    @property
    def _name_in_use(self) -> str:
        profile = self.services.state.profile
        return profile.name if profile is not None else SANDBOX_NAME

    @work(thread=True, group="switch", exit_on_error=False)
    def _open_profile(self, name: str = "") -> None:
        """Open the profile in use again, or `name`, which becomes the active profile of later sessions."""
        try:
            self._refuse_to_end_the_sandbox()
            if name:
                self._use(name)
            else:
                self.services.reload()
        except ConsoleError as error:
            self.app.call_from_thread(self.show_error, error)
            return
        finally:
            self._shown_for = None  # not sooner: what is read before the end is that of the former one
        found = self.services.settings()
        flags = ", ".join(item.origin.split()[1] for item in found if item.origin.startswith(f"{OriginKind.FLAG} "))
        note = f" Command-line options still apply: {flags}." if name and flags else ""
        self.notify(f"Now using {profile_label(self.services.state.profile)}.{note}", timeout=6, markup=False)

    def _refuse_to_end_the_sandbox(self) -> None:
        """Raises ConsoleError while a job uses the sandbox, which ends with its profile; a real bucket stays there."""
        profile = self.services.state.profile
        working = next((job for job in self.console.jobs if job.alive), None)
        if profile is not None and profile.simulated and working is not None:
            raise ConsoleError(
                f"The sandbox is still used: {working.title}.", remedy="Wait for its end, or cancel it: 2, then J."
            )

    def _use(self, name: str) -> None:
        """Blocks; call it in a thread."""
        self.services.use_profile(name)
        settings = load_settings()
        if name in {SANDBOX_NAME, *settings.profiles}:
            save_settings(settings.activated(name))

    @work(exit_on_error=False)
    async def action_profiles(self) -> None:
        """Use or manage profiles."""
        name = await self.app.push_screen_wait(ProfilesScreen(self._name_in_use))
        if name:
            self._open_profile(name)

    @work(exit_on_error=False)
    async def action_edit(self) -> None:
        """Edit the profile in use."""
        name = self._name_in_use
        try:
            known = (await asyncio.to_thread(load_settings)).profiles
        except ConsoleError as error:
            self.show_error(error)
            return
        form = ProfileForm(known[name]) if name in known else ProfileForm()
        saved = await self.ask(form)
        if saved:
            self._open_profile("" if saved == name else saved)

    @work(exit_on_error=False)
    async def action_key(self) -> None:
        """Enter an AccessKey or import one."""
        path = await self.app.push_screen_wait(KeyForm(self._sources))
        if path:
            profile = self.services.state.profile
            note = ""
            if profile is not None and not profile.simulated and not profile.reads_key_file:
                note = f" Not used: the profile has credentials {profile.credentials}; e changes it."
            self.notify(f"Saved to {path} (mode 0400).{note}", timeout=12 if note else 6, markup=False)
            if profile is not None and not profile.simulated:  # the sandbox has keys of its own
                self._open_profile()

    @work(exit_on_error=False)
    async def action_connector(self) -> None:
        """Edit the configuration of the connector."""
        try:
            form = ConnectorForm()
            written = await self.app.push_screen_wait(form)
        except ConsoleError as error:
            self.show_error(error)
            return
        if written:
            self._connector = await asyncio.to_thread(panels.read_connector)
            self.notify(f"Written: {', '.join(written)}. Takes effect on the next run.", timeout=6, markup=False)

    @work(exit_on_error=False)
    async def action_accelerator(self) -> None:
        """Create, change or delete the accelerator."""
        profile, known = self.services.profile, self._known
        setup = await self._setup_of(profile)
        if profile is None or setup is None:
            return
        await asyncio.to_thread(_read_accelerator, setup, known)
        state = known.accelerator
        if state is None:  # a change replaces everything, so what is there must be known
            self.notify(safe(known.accelerator_problem), severity="warning", timeout=12, markup=False)
            return
        change = functools.partial(self._change, setup, known)
        present, choice = state.accelerator, "change"
        if present is not None:
            changes = (Choice("change", "Change"),) if present.paths_known else ()
            choices = (Choice("", "Cancel"), *changes, Choice("delete", "Delete", "error"))
            choice = await self.ask(ConfirmScreen("Accelerator", accelerator_text(present), choices))
        if choice == "delete" and present is not None:
            await self._delete_accelerator(profile.bucket, present, change)
        elif choice == "change":
            wanted = await self.ask(AcceleratorForm(profile, present))
            if wanted is not None:
                await self._save_accelerator(profile.bucket, wanted, present, change)

    async def _setup_of(self, profile: Profile | None) -> BucketAdmin | None:
        """The bucket of a profile, also when another one is opened behind a dialog; None for one not in use."""
        setup = await self.request(self.services.bucket_setup) if profile is not None else None
        return setup if self.services.profile == profile else None

    @work(exclusive=True, group="warm-up", exit_on_error=False)
    async def action_warm_up(self) -> None:
        """Read the dataset once through the accelerated endpoint, or show the warm-up that is running."""
        await warm_up(self)

    async def _save_accelerator(
        self, bucket: str, wanted: Accelerator, present: Accelerator | None, change: _Change
    ) -> None:
        """Ask, then create or change; what costs more is confirmed by typing."""
        if present is None:
            title, question, button = "Create a billed accelerator?", creation_question(bucket, wanted), "Create"
        else:
            title, question, button = "Change the accelerator?", change_question(present, wanted), "Change"
        if not question:
            self.notify("The accelerator stays as it is: nothing was changed.", timeout=5)
            return
        if present is None or wanted.quota_gb > present.quota_gb:
            screen: ConsoleModal = TypedConfirmScreen(title, question, word=bucket, button=button)
        else:
            screen = ConfirmScreen(title, question, (Choice("", "Cancel"), Choice("yes", button, "warning")))
        if await self.app.push_screen_wait(screen):
            await change(lambda setup: setup.save_accelerator(wanted, present), "Accelerator updated.")

    async def _delete_accelerator(self, bucket: str, present: Accelerator, change: _Change) -> None:
        question = deletion_question(bucket, present)
        screen = TypedConfirmScreen("Delete the accelerator?", question, word=bucket, button="Delete")
        if await self.app.push_screen_wait(screen):
            await change(lambda setup: setup.delete_accelerator(present.zone), "Accelerator deleted.")

    async def _change(
        self, setup: BucketAdmin, known: _Known, change: Callable[[BucketAdmin], None], report: str
    ) -> None:
        """Apply a change in a thread, report it, and read the accelerator again."""
        try:
            await asyncio.to_thread(change, setup)
        except ConsoleError as error:
            self.show_error(error)
            return
        self.notify(report, timeout=5)
        await asyncio.to_thread(_read_accelerator, setup, known)

    @work(exit_on_error=False)
    async def action_create_bucket(self) -> None:
        """Create the missing bucket, then test again."""
        profile = self.services.profile
        setup = await self._setup_of(profile)
        if profile is None or setup is None:
            return
        question = f"Creates oss://{profile.bucket} in {profile.region}: private, storage class Standard."
        screen = TypedConfirmScreen("Create the bucket?", question, word=profile.bucket, button="Create")
        if not await self.ask(screen):
            return
        try:
            await asyncio.to_thread(setup.create_bucket)
        except ConsoleError as error:
            self.show_error(error)
            return
        self.action_test()


def _read_accelerator(setup: BucketAdmin, known: _Known) -> None:
    """Blocks; call it in a thread."""
    try:
        known.accelerator, known.accelerator_problem = setup.accelerator(), ""
    except ConsoleError as error:
        known.accelerator, known.accelerator_problem = None, str(error)
