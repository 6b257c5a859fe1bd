"""SetupScreen: the profile and its credentials, proof that they work, accelerator and connector."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType

from ossconsole.config.credential_sources import SourceState, survey
from ossconsole.config.credentials import mask_key_id
from ossconsole.config.endpoints import EndpointKind, region_caution
from ossconsole.config.errors import ConsoleError
from ossconsole.config.metadata import Instance
from ossconsole.config.profiles import FLAGS_NAME, SANDBOX_NAME, load_settings, save_settings
from ossconsole.config.resolve import OriginKind
from ossconsole.storage.accelerator import Accelerator, cost_estimate
from ossconsole.storage.probe.report import ProbeStage, StepStatus
from ossconsole.tui.console import AcceleratorState, Failed, NoCredentials, Starting
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen, TypedConfirmScreen
from ossconsole.tui.kit.notice import notice, place
from ossconsole.tui.kit.screen import ConsoleScreen
from ossconsole.tui.kit.text import Line, safe, shorten, wrap
from ossconsole.tui.setup import panels as details
from ossconsole.tui.setup import panels as proving
from ossconsole.tui.setup import panels as settings
from ossconsole.tui.setup.connector_form import AcceleratorForm, ConnectorForm
from ossconsole.tui.setup.profiles import KeyForm, ProfileForm, ProfilesScreen
from ossconsole.tui.setup.proof import Proof, ReportScreen

_KEYS_FOR_S = 30.0  # temporary credentials are looked at again this often: their source renews them before they end


class SetupScreen(ConsoleScreen):
    """What is known about the bucket is looked up in threads; every change goes through a dialog."""

    SCOPE = "setup"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("setup")]

    def __init__(self) -> None:
        super().__init__()
        self._looked_for: tuple[object, bool] | None = None
        self._keys = settings.Keys()
        self._keys_at = 0.0
        self._proof: Proof | None = None
        self._instance: Instance | None = None
        self._accelerator: AcceleratorState | None = None
        self._accelerator_problem = ""
        self._connector = details.ConnectorState()
        self._sources: list[SourceState] = []

    def body(self) -> ComposeResult:
        yield Panel(self._profile, id="setup-profile")
        yield Panel(self._prove, id="setup-prove")
        yield Panel(self._details, id="setup-details")

    def tick(self) -> None:
        state = self.services.state
        if (state.profile, state.usable) != self._looked_for:
            self._looked_for = state.profile, state.usable
            self._forget()
            self._look_up(usable=state.usable)
        elif (
            self._keys.found and self._keys.found.expiration and self.console.monitor.now - self._keys_at > _KEYS_FOR_S
        ):
            self._find_keys()
        height = len(self._profile(self.size.width, self.size.height))
        for panel in self.query(Panel):
            if panel.id == "setup-profile":
                panel.styles.height = height
            if panel.display:
                panel.redraw()

    def _forget(self) -> None:
        """Another profile: nothing known of the last one holds."""
        self._keys = settings.Keys()
        self._proof = None
        self._accelerator, self._accelerator_problem = None, ""
        self.redraw_bars()

    # Looking up

    @work(thread=True, exclusive=True, group="keys", exit_on_error=False)
    def _find_keys(self) -> None:
        self._read_keys()

    def _read_keys(self) -> None:
        """Blocks; called from a worker's thread."""
        self._keys_at = self.console.monitor.now
        try:
            self._keys = settings.Keys(found=self.services.credentials())
        except ConsoleError as error:
            self._keys = settings.Keys(problem=str(error))

    @work(thread=True, exclusive=True, group="look-up", exit_on_error=False)
    def _look_up(self, *, usable: bool) -> None:
        if usable:
            self._read_keys()
        self._connector = details.read_connector()
        self._sources = survey()
        try:
            self._instance = self.services.bucket_setup().instance()
        except ConsoleError:  # off an instance, or no profile is known yet
            self._instance = None

    @work(thread=True, exclusive=True, group="prove", exit_on_error=False)
    def _run_proof(self, proof: Proof) -> None:
        try:
            setup = self.services.bucket_setup()
            proof.finish(setup.probe(proof.on_step))
        except ConsoleError as error:
            proof.finish(problem=str(error))
            return
        signed = proof.step(EndpointKind.ACCELERATED, ProbeStage.SIGNED)
        if signed is not None and signed.status in {StepStatus.OK, StepStatus.WARN}:
            self._read_accelerator()

    def _read_accelerator(self) -> None:
        """Blocks; called from a worker's thread."""
        try:
            self._accelerator = self.services.bucket_setup().accelerator()
            self._accelerator_problem = ""
        except ConsoleError as error:
            self._accelerator, self._accelerator_problem = None, str(error)

    # Drawing

    def _profile(self, width: int, _height: int) -> Sequence[Line]:
        state = self.services.state
        profile = state.profile
        lines = [self._heading(self._title, width, self._place())]
        if profile is None:
            words = notice(state, self.glyphs, width)
            return [*lines, *(words[:-1] if isinstance(state, Failed) else words)]  # how to try again is told below
        now = self.console.monitor.now
        lines += settings.profile_lines(self.services.settings(), self._known_keys, self.glyphs, now, width)
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
    def _known_keys(self) -> settings.Keys:
        state = self.services.state
        if isinstance(state, NoCredentials):
            return settings.Keys(problem="none; press k to enter an AccessKey")
        return settings.Keys(problem=state.reason) if isinstance(state, Failed) else self._keys

    def _place(self) -> str:
        found = self._instance
        return f"{found.instance_type} in {found.zone or found.region}" if found else ""

    def _prove(self, width: int, height: int) -> Sequence[Line]:
        state, proof = self.services.state, self._proof
        note = ""
        if proof is not None:
            note = f"{proof.seconds:.1f} s" if not proof.running else f"proving, {proof.seconds:.0f} s"
        lines = [self._heading(f"Prove{self._simulated}", width, note)]
        if state.profile is not None and (state.usable or proof is not None):
            lines += proving.proving(state.profile, proof, self.glyphs, width, height - 1)
        else:
            lines += proving.unusable(state, self.glyphs, width)
        return lines[:height]

    @property
    def _simulated(self) -> str:
        profile = self.services.profile
        return " (simulated)" if profile is not None and profile.simulated else ""

    def _details(self, width: int, height: int) -> Sequence[Line]:
        sources = [
            (str(state.source), mask_key_id(state.credentials.access_key_id) if state.credentials else state.words)
            for state in self._sources
        ]
        glyphs = self.glyphs
        lines = [
            self._heading(f"Accelerator{self._simulated}", width),
            *details.accelerator_lines(self._accelerator, self._accelerator_problem, glyphs, width),
            self._heading("Connector", width),
            *details.connector_lines(self._connector, glyphs, width),
            self._heading("Credentials on this machine", width),
            *details.source_lines(sources, glyphs, width),
        ]
        return lines[:height]

    def _heading(self, title: str, width: int, note: str = "") -> Line:
        rule = self.glyphs.rule
        line = Line((f"{rule} ", "rule"), (f"{shorten(safe(title), width - 4)} ", "title"))
        end = Line((" ", "rule"), (safe(note), "dim"), (f" {rule}", "rule")) if note else Line()
        if line.width + end.width + 1 > width:
            return line.to(width, "rule", rule)
        return line.to(width - end.width, "rule", rule).extend(end)

    # Actions

    def check_action(self, action: str, _parameters: tuple[object, ...]) -> bool | None:
        profile, state = self.services.profile, self.services.state
        if action == "create_bucket":
            missing = self._proof is not None and self._proof.refused_with("NoSuchBucket")
            return missing and not self.services.readonly
        if action == "report":
            return self._proof is not None
        if action == "prove":
            # Without credentials, too: how far the endpoints can be reached is worth knowing.
            known = state.profile is not None and (state.usable or not isinstance(state, Starting))
            return True if known and not (self._proof and self._proof.running) else None
        if action == "accelerator":
            return True if profile is not None and profile.accelerated_endpoint and not self.services.readonly else None
        return True

    def action_prove(self) -> None:
        self._proof = Proof()
        self._run_proof(self._proof)
        self.tick()

    def action_report(self) -> None:
        if self._proof is not None:
            self.app.push_screen(ReportScreen(self._proof))

    def action_reload(self) -> None:
        self._switch_to()

    @property
    def _name_in_use(self) -> str:
        profile = self.services.state.profile
        return profile.name if profile is not None else SANDBOX_NAME

    @work(thread=True, group="switch", exit_on_error=False)
    def _switch_to(self, name: str = "") -> None:
        """Opens the profile in use again, or `name`, which is then the active one for the next start, too."""
        self._looked_for = None
        try:
            if name:
                self._use(name)
            else:
                self.services.reload()
        except ConsoleError as error:
            self.app.call_from_thread(self.tell, error)
            return
        found = self.services.settings()
        flags = ", ".join(item.origin.split()[1] for item in found if item.origin.startswith(f"{OriginKind.FLAG} "))
        note = f" Options of the command line stay: {flags}." if name and flags else ""
        self.notify(f"Now using {place(self.services.state.profile)}.{note}", timeout=6, markup=False)

    def _use(self, name: str) -> None:
        """Blocks; called from a worker's thread."""
        self.services.use_profile(name)
        known = load_settings()
        if name in {SANDBOX_NAME, *known.profiles}:
            save_settings(known.activated(name))

    @work(exit_on_error=False)
    async def action_profiles(self) -> None:
        name = await self.app.push_screen_wait(ProfilesScreen(self._name_in_use))
        if name:
            self._switch_to(name)

    @work(exit_on_error=False)
    async def action_edit(self) -> None:
        name = self._name_in_use
        try:
            known = (await asyncio.to_thread(load_settings)).profiles
        except ConsoleError as error:
            self.tell(error)
            return
        form = ProfileForm(known[name]) if name in known else ProfileForm()
        saved = await self.app.push_screen_wait(form)
        if saved:
            self._switch_to("" if saved == name else saved)

    @work(exit_on_error=False)
    async def action_key(self) -> None:
        path = await self.app.push_screen_wait(KeyForm(self._sources))
        if path:
            self.notify(f"Written to {path}, readable by you alone.", timeout=6, markup=False)
            profile = self.services.state.profile
            if profile is not None and not profile.simulated:  # the sandbox has keys of its own
                self._switch_to()

    @work(exit_on_error=False)
    async def action_connector(self) -> None:
        try:
            form = ConnectorForm()
            written = await self.app.push_screen_wait(form)
        except ConsoleError as error:
            self.tell(error)
            return
        if written:
            self._connector = await asyncio.to_thread(details.read_connector)
            self.notify(f"Written: {', '.join(written)}. It holds from the next run on.", timeout=6, markup=False)

    @work(exit_on_error=False)
    async def action_accelerator(self) -> None:
        profile = self.services.profile
        if profile is None:
            return
        await asyncio.to_thread(self._read_accelerator)
        present = self._accelerator.accelerator if self._accelerator else None
        if self._accelerator_problem:
            self.notify(safe(self._accelerator_problem), severity="warning", timeout=12, markup=False)
        choice = "change"
        if present is not None:
            choices = (Choice("", "Back"), Choice("change", "Change"), Choice("delete", "Delete", "error"))
            words = f"{present.name} in {present.zone}, {present.quota_gb:,} GB: {cost_estimate(present)}."
            choice = await self.app.push_screen_wait(ConfirmScreen("Accelerator", words, choices))
        if choice == "delete":
            await self._delete_accelerator(profile.bucket)
        elif choice == "change":
            wanted = await self.app.push_screen_wait(AcceleratorForm(profile, present))
            if wanted is not None:
                await self._create_accelerator(profile.bucket, wanted)

    async def _create_accelerator(self, bucket: str, wanted: Accelerator) -> None:
        paths = ", ".join(path.prefix for path in wanted.paths) or "the whole bucket"
        question = (
            f"An accelerator of {wanted.quota_gb:,} GB in {wanted.zone} for oss://{bucket}, caching {paths}. "
            f"It is billed from its creation on: {cost_estimate(wanted)}."
        )
        screen = TypedConfirmScreen("This costs money", question, word=bucket, button="Create")
        if await self.app.push_screen_wait(screen):
            await self._change(
                lambda: self.services.bucket_setup().create_accelerator(wanted), "The accelerator is set."
            )

    async def _delete_accelerator(self, bucket: str) -> None:
        question = f"The cache of oss://{bucket} is given up, and billing ends. The objects stay in the bucket."
        screen = TypedConfirmScreen("Delete the accelerator?", question, word=bucket, button="Delete")
        if await self.app.push_screen_wait(screen):
            await self._change(lambda: self.services.bucket_setup().delete_accelerator(), "The accelerator is gone.")

    async def _change(self, change: Callable[[], None], words: str) -> None:
        """Do it in a thread, say so, and read the state again."""
        try:
            await asyncio.to_thread(change)
        except ConsoleError as error:
            self.tell(error)
            return
        self.notify(words, timeout=5)
        await asyncio.to_thread(self._read_accelerator)

    @work(exit_on_error=False)
    async def action_create_bucket(self) -> None:
        profile = self.services.profile
        if profile is None:
            return
        question = f"The bucket oss://{profile.bucket} is created in {profile.region}, private, storage class Standard."
        screen = TypedConfirmScreen("Create the bucket?", question, word=profile.bucket, button="Create")
        if not await self.app.push_screen_wait(screen):
            return
        try:
            await asyncio.to_thread(lambda: self.services.bucket_setup().create_bucket())
        except ConsoleError as error:
            self.tell(error)
            return
        self.action_prove()
