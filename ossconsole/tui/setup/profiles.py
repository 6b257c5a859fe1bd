"""ProfilesScreen: use, create, copy, edit, rename and delete profiles; with the forms for a profile and a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ossconsole.config.alibaba_credentials import CliProfileSource, SdkFileSource
from ossconsole.config.credential_sources import (
    FileSource,
    SourceState,
    connector_file,
    parse_expiration,
    write_connector_file,
)
from ossconsole.config.credentials import Credentials, Secret, mask_key_id
from ossconsole.config.endpoints import (
    REGIONS,
    Candidate,
    EndpointKind,
    HostKind,
    candidates,
    classify,
    is_region_id,
    normalise_endpoint,
)
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import short_path
from ossconsole.config.profiles import (
    AUTO_CREDENTIALS,
    PLAIN_HTTP_ALLOWED,
    SANDBOX_NAME,
    FieldError,
    Profile,
    Settings,
    checked,
    load_settings,
    refuse_misuse,
    refuse_other_region,
    refuse_plain_http,
    save_settings,
    settings_path,
)
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen, Field, FormScreen, Values
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.text import safe, shorten
from ossconsole.tui.setup.panels import host_label

NEW = Profile(name="", region="", bucket="", standard_endpoint="")
_ENDPOINTS = {f"{kind}_endpoint": kind for kind in EndpointKind}
_HINTS = {
    "name": "letters, digits, dots, hyphens, underscores",
    "region": "OSS region ID, such as cn-hangzhou; it gives the endpoints below",
    "bucket": "the name without a host",
    "standard_endpoint": "for uploads and checkpoints; press down for suggestions",
    "accelerated_endpoint": "for reading the dataset; empty without an accelerator",
    "dataset_prefix": "the folder with train/ and val/",
    "checkpoint_prefix": "the folder for checkpoints",
    "credentials": "auto (all), environment, oidc, connector, uri, ossutil:NAME, aliyun:NAME, sdk:NAME or ecs:ROLE",
}
_LABELS = {
    "standard_endpoint": "standard",
    "accelerated_endpoint": "accelerated",
    "dataset_prefix": "dataset",
    "checkpoint_prefix": "checkpoints",
}


class ProfileForm(FormScreen):
    """Creates or edits a profile; saves it and returns its name."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("down", "to_candidates", show=False)]

    def __init__(self, profile: Profile = NEW) -> None:
        super().__init__(f"Profile {profile.name}" if profile.name else "New profile")
        self._profile = profile
        self._suggested_field = ""
        self._confirmed_http: dict[EndpointKind, str] = {}

    def fields(self) -> Sequence[Field]:
        known = msgspec.structs.asdict(self._profile)
        names = [name for name in _HINTS if name != "name" or not self._profile.name]
        return [Field(name, _label(name), _HINTS[name], str(known[name] or "")) for name in names]

    def extra(self) -> ComposeResult:
        yield OptionList(id="candidates", markup=False, compact=True)

    def hint(self, field: Field) -> str:
        """For an endpoint, its kind and place."""
        kind = _ENDPOINTS.get(field.name)
        text = self.value(field.name) if kind else ""
        try:
            found = classify(normalise_endpoint(text)) if text else None
        except SettingsError as error:
            return error.message
        if found is None:
            return field.hint
        region = self.value("region")
        if found.kind is HostKind.TRANSFER_ACCELERATION or (found.kind is HostKind.ACCELERATOR) is not (
            kind is EndpointKind.ACCELERATED
        ):
            return f"{host_label(found)}: {found.note}. Is this the {kind} endpoint?"
        if found.region and region and found.region != region:
            return f"{host_label(found)}: but the region above is {region}."
        return f"{host_label(found)}: {found.note}."

    @on(Input.Changed, "#field-region")
    def _region_changed(self, event: Input.Changed) -> None:
        """Move the endpoints to the new region."""
        region = event.value.strip().removeprefix("oss-")
        if region not in REGIONS:
            return
        for name, kind in _ENDPOINTS.items():
            text = self.value(name)
            moved = moved_endpoint(text, kind, region)
            if moved != text:
                control = self.control(name)
                assert isinstance(control, Input)  # noqa: S101 - endpoints are typed
                control.value = moved

    @on(Input.Changed, "#field-standard_endpoint")
    def _endpoint_changed(self, event: Input.Changed) -> None:
        """Enter the region of an endpoint that was typed first."""
        control = self.control("region")
        if isinstance(control, Input) and self.focused is event.input:
            try:
                region = classify(normalise_endpoint(event.value)).region if event.value.strip() else ""
            except SettingsError:
                return
            if region in REGIONS and region != control.value:
                control.value = region

    def show_hint(self) -> None:
        super().show_hint()
        field = self.focused_field
        if field is not None:
            self._show_candidates(_ENDPOINTS.get(field.name))

    def _show_candidates(self, kind: EndpointKind | None) -> None:
        listed = self.query_one("#candidates", OptionList)
        region = self.value("region")
        known = kind is not None and is_region_id(region)  # no hosts of a region that cannot exist
        found = [item for item in candidates(region) if item.use is kind] if known else []
        wanted = [item.endpoint for item in found]
        if [option.id for option in listed.options] != wanted:
            listed.clear_options()
            listed.add_options(Option(_candidate_label(item), id=item.endpoint) for item in found)
        listed.set_class(not wanted, "-empty")

    def action_to_candidates(self) -> None:
        """Move the focus to the suggested endpoints, or to the next field."""
        listed = self.query_one("#candidates", OptionList)
        field = self.focused_field
        if field is not None and field.name in _ENDPOINTS and listed.option_count:
            self._suggested_field = field.name
            listed.highlighted = 0
            listed.focus()
        else:
            self.focus_next()

    def _on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        control = self.control(self._suggested_field)
        assert isinstance(control, Input)  # noqa: S101 - endpoints are typed
        control.value = event.option.id or ""
        control.focus()

    def action_back(self) -> None:
        if isinstance(self.focused, OptionList):
            self.control(self._suggested_field).focus()
        else:
            super().action_back()

    def accept(self, values: Values) -> str:
        """Save the profile. Raises FieldError or SettingsError."""
        name = self._profile.name or values["name"]
        region = values["region"].removeprefix("oss-")
        standard = values["standard_endpoint"] or (candidates(region)[0].endpoint if region else "")
        profile = Profile(
            name=name,
            region=region,
            bucket=values["bucket"],
            standard_endpoint=standard,
            accelerated_endpoint=values["accelerated_endpoint"] or None,
            dataset_prefix=values["dataset_prefix"],
            checkpoint_prefix=values["checkpoint_prefix"],
            credentials=values["credentials"] or AUTO_CREDENTIALS,
        )
        settings = load_settings()
        if not self._profile.name and name in settings.profiles:
            raise SettingsError(f"There is a profile {name!r} already.", remedy="Use another name.")
        profile = checked(profile)
        refuse_other_region(profile)
        refuse_misuse(profile)
        save_settings(settings.with_profile(self._allow_plain_http(profile)))
        return name

    def _allow_plain_http(self, profile: Profile) -> Profile:
        """The profile, with plain HTTP allowed once it was confirmed. Raises FieldError, which asks for that."""
        known = self._profile.endpoints if self._profile.plain_http else self._confirmed_http
        if profile.endpoints == known:
            return msgspec.structs.replace(profile, plain_http=PLAIN_HTTP_ALLOWED)
        try:
            refuse_plain_http(profile)
        except FieldError as error:
            self._confirmed_http = profile.endpoints
            remedy = "Use https:// instead, or save again to allow plain HTTP."
            raise FieldError(error.field, error.message, remedy=remedy) from error
        return profile


def _label(name: str) -> str:
    return _LABELS.get(name, name)


def _candidate_label(item: Candidate) -> str:
    zone = ", zone" if item.host.zone else ""
    return f"{item.endpoint.removeprefix('https://')}  {item.host.kind}{zone}"


class NameForm(FormScreen):
    """Returns an unused profile name."""

    def __init__(self, title: str, name: str) -> None:
        super().__init__(title)
        self._initial = name

    def fields(self) -> list[Field]:
        return [Field("name", "Name", "letters, digits, dots, hyphens, underscores", self._initial)]

    def accept(self, values: Values) -> str:
        """The name. Raises SettingsError where it is used."""
        if values["name"] in load_settings().profiles:
            raise SettingsError(f"There is a profile {values['name']!r} already.", remedy="Use another name.")
        return values["name"]


class ProfilesScreen(ConsoleModal):
    """Returns the name of the profile to open, or None to keep the one in use.

    A profile in use that was edited is returned by its own name, as it must be opened again.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new", "New", show=False),
        Binding("c", "copy", "Copy", show=False),
        Binding("e", "edit", "Edit", show=False),
        Binding("r", "rename", "Rename", show=False),
        Binding("d,delete", "delete", "Delete", show=False),
    ]

    def __init__(self, in_use: str) -> None:
        super().__init__()
        self._in_use = in_use
        self._changed = False
        self._settings = Settings()

    def compose(self) -> ComposeResult:
        with self.frame("Profiles", "enter use · n new · c copy · e edit · r rename · d delete · esc back"):
            yield OptionList(id="profiles", markup=False, compact=True)
            yield Static(id="where", markup=False)

    def on_mount(self) -> None:
        """List the profiles."""
        self.query_one("#where", Static).update(safe(short_path(settings_path())))
        self._load(self._in_use)
        self.query_one("#profiles").focus()

    def _load(self, select: str = "") -> None:
        try:
            self._settings = load_settings()
        except SettingsError as error:
            self.show_error(error)
            self.dismiss(None)
            return
        listed = self.query_one("#profiles", OptionList)
        listed.clear_options()
        names = [SANDBOX_NAME, *self._settings.profiles]
        listed.add_options(Option(self._profile_label(name), id=name) for name in names)
        listed.highlighted = names.index(select) if select in names else 0

    def _profile_label(self, name: str) -> str:
        mark = self.glyphs.running if name == self._in_use else " "
        if name == SANDBOX_NAME:
            return f"{mark} {SANDBOX_NAME:<20} embedded server, simulated"
        profile = self._settings.profiles[name]
        return f"{mark} {shorten(name, 20, self.glyphs.ellipsis):<20} oss://{profile.bucket} in {profile.region}"

    def _selected(self) -> Profile | None:
        """The profile under the cursor; None for the sandbox, which a message explains."""
        listed = self.query_one("#profiles", OptionList)
        name = "" if listed.highlighted is None else listed.get_option_at_index(listed.highlighted).id
        found = self._settings.profiles.get(name or "")
        if found is None:
            self.notify("The sandbox is built in and stays as it is. n creates a profile.", timeout=4)
        return found

    def _is_needed(self, profile: Profile) -> bool:
        """Whether a run or an upload of this console uses the profile, which is then said: it stays open until then."""
        work = (self.services.run, self.services.upload)
        if profile.name != self._in_use or not any(one and one.alive and not one.is_remote for one in work):
            return False
        remedy = "Wait for the end of it, or stop it."
        self.show_error(ConsoleError(f"A run or an upload uses the profile {profile.name}.", remedy=remedy))
        return True

    def _on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    def action_back(self) -> None:
        """Close, and open the profile in use again where it was edited."""
        self.dismiss(self._in_use if self._changed else None)

    @work(exit_on_error=False)
    async def action_new(self) -> None:
        """Create a profile."""
        name = await self.app.push_screen_wait(ProfileForm())
        if name:
            self._load(name)

    @work(exit_on_error=False)
    async def action_edit(self) -> None:
        """Edit the selected profile."""
        profile = self._selected()
        if profile is not None and await self.app.push_screen_wait(ProfileForm(profile)):
            self._changed |= profile.name == self._in_use
            self._load(profile.name)

    @work(exit_on_error=False)
    async def action_copy(self) -> None:
        """Copy the selected profile under another name."""
        profile = self._selected()
        if profile is None:
            return
        name = await self.app.push_screen_wait(NameForm(f"Copy of {profile.name}", f"{profile.name}-copy"))
        if name:
            self._save(lambda found: found.with_profile(msgspec.structs.replace(profile, name=name)), select=name)

    @work(exit_on_error=False)
    async def action_rename(self) -> None:
        """Rename the selected profile."""
        profile = self._selected()
        if profile is None or self._is_needed(profile):
            return
        name = await self.app.push_screen_wait(NameForm(f"Rename {profile.name}", profile.name))
        if name and self._save(lambda found: found.renamed(profile.name, name), select=name):
            self._replace_in_use(profile.name, name)

    @work(exit_on_error=False)
    async def action_delete(self) -> None:
        """Delete the selected profile, after a question."""
        profile = self._selected()
        if profile is None or self._is_needed(profile):
            return
        question = (
            f"Removes the profile {profile.name} from the settings file. The bucket oss://{profile.bucket} and its "
            "objects are not changed."
        )
        choices = (Choice("", "Cancel"), Choice("delete", "Delete", "error"))
        answer = await self.app.push_screen_wait(ConfirmScreen("Delete the profile?", question, choices))
        if answer and self._save(lambda found: found.without(profile.name), select=self._in_use):
            self._replace_in_use(profile.name, SANDBOX_NAME)

    def _replace_in_use(self, old: str, new: str) -> None:
        """Return another name where the profile in use was renamed or deleted."""
        if old == self._in_use:
            self._in_use, self._changed = new, True
            self._load(new)

    def _save(self, change: Callable[[Settings], Settings], *, select: str) -> bool:
        try:
            save_settings(change(load_settings()))
        except ConsoleError as error:
            self.show_error(error)
            return False
        self._load(select)
        return True


_TYPED = "typed below"


def moved_endpoint(text: str, kind: EndpointKind, region: str) -> str:
    """The endpoint of the same kind of host in another region; one that names no region stays.

    An empty standard endpoint becomes the internal one of the region.
    """
    if not text:
        return candidates(region)[0].endpoint if kind is EndpointKind.STANDARD else ""
    try:
        host = classify(normalise_endpoint(text))
    except SettingsError:
        return text
    if not host.region or host.region == region:
        return text
    same = [found for found in candidates(region) if found.use is kind and found.host.kind is host.kind]
    return same[0].endpoint if same else text


class KeyForm(FormScreen):
    """Writes the connector's credential file, from typed values or another tool's key pair; returns its path."""

    def __init__(self, sources: Sequence[SourceState]) -> None:
        super().__init__("AccessKey")
        self._known = {
            str(state.source): state.credentials for state in sources if state.credentials and _is_foreign(state)
        }

    def fields(self) -> Sequence[Field]:
        written = f"written to {short_path(connector_file())}, readable only by you (0400)"
        known = tuple((f"{name}: {mask_key_id(pair.access_key_id)}", name) for name, pair in self._known.items())
        hint = "typed below, or imported from another tool"
        imported = [Field("imported", "Key pair", hint, _TYPED, ((_TYPED, _TYPED), *known))] if known else []
        return [
            *imported,
            Field("access_key_id", "AccessKey ID", f"of a RAM user with access to the bucket; {written}"),
            Field("access_key_secret", "AccessKey secret", "never shown", secret=True),
            Field("security_token", "Security token", "for temporary credentials only", secret=True),
            Field("expiration", "Expires at", "UTC, such as 2030-01-31T08:00:00Z; empty = never or unknown"),
        ]

    def accept(self, values: Values) -> str:
        """Write the file. Raises FieldError or SettingsError."""
        found = self._known.get(values.get("imported", _TYPED)) or _typed(values)
        return short_path(write_connector_file(found))


def _is_foreign(state: SourceState) -> bool:
    """Whether it is a key pair of another tool, which the connector does not read."""
    if isinstance(state.source, FileSource):
        return state.source.kind != "connector"
    return isinstance(state.source, CliProfileSource | SdkFileSource)


def _typed(values: Values) -> Credentials:
    for name, label in (("access_key_id", "AccessKey ID"), ("access_key_secret", "AccessKey secret")):
        if not values[name] or not values[name].isascii() or any(letter.isspace() for letter in values[name]):
            raise FieldError(name, f"The {label} is missing or contains spaces.", remedy="Paste it again.")
    try:
        expiration = parse_expiration(values["expiration"])
    except ValueError as error:
        raise FieldError(
            "expiration", f"{values['expiration']!r} is not a valid time.", remedy="Enter it as 2030-01-31T08:00:00Z."
        ) from error
    token = values["security_token"]
    return Credentials(
        values["access_key_id"], Secret(values["access_key_secret"]), Secret(token) if token else None, expiration
    )
