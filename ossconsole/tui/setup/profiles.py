"""ProfilesScreen: use, create, copy, edit, rename and delete profiles; with the forms for a profile and a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ossconsole.config.credential_sources import (
    FileSource,
    SourceState,
    connector_file,
    parse_expiration,
    write_connector_file,
)
from ossconsole.config.credentials import Credentials, Secret, mask_key_id
from ossconsole.config.endpoints import Candidate, EndpointKind, HostKind, candidates, classify, normalise_endpoint
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
    refuse_plain_http,
    save_settings,
    settings_path,
)
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen, Field, FormScreen, Values
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.text import safe, shorten
from ossconsole.tui.setup.panels import host_words

NEW = Profile(name="", region="", bucket="", standard_endpoint="")
_ENDPOINTS = {f"{kind}_endpoint": kind for kind in EndpointKind}
_HINTS = {
    "name": "what you call it: letters, digits, dots, hyphens, underscores",
    "region": "as OSS spells it, such as cn-hangzhou; the endpoints below follow from it",
    "bucket": "its name alone; the host is put together from it and the endpoint",
    "standard_endpoint": "for uploads and checkpoints; down goes to the candidates",
    "accelerated_endpoint": "for reading the dataset; empty where the bucket has no accelerator",
    "dataset_prefix": "the folder that holds train/ and val/",
    "checkpoint_prefix": "the folder that checkpoints are written to",
    "credentials": "auto looks everywhere; or environment, connector, ossutil:NAME, aliyun:NAME, ecs:ROLE",
}
_LABELS = {
    "standard_endpoint": "standard",
    "accelerated_endpoint": "accelerated",
    "dataset_prefix": "dataset",
    "checkpoint_prefix": "checkpoints",
}


class ProfileForm(FormScreen):
    """Saves the profile and returns its name."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("down", "to_candidates", show=False)]

    def __init__(self, profile: Profile = NEW) -> None:
        super().__init__(f"Profile {profile.name}" if profile.name else "New profile")
        self._profile = profile
        self._choosing = ""
        self._asked_about: dict[EndpointKind, str] = {}

    def fields(self) -> Sequence[Field]:
        known = msgspec.structs.asdict(self._profile)
        names = [name for name in _HINTS if name != "name" or not self._profile.name]
        return [Field(name, _label(name), _HINTS[name], str(known[name] or "")) for name in names]

    def extra(self) -> ComposeResult:
        yield OptionList(id="candidates", markup=False, compact=True)

    def hint(self, field: Field) -> str:
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
            return f"{host_words(found)}: {found.note}. Is this the {kind} endpoint?"
        if found.region and region and found.region != region:
            return f"{host_words(found)}: but the region above is {region}."
        return f"{host_words(found)}: {found.note}."

    def show_hint(self) -> None:
        super().show_hint()
        field = self.focused_field
        if field is not None:
            self._show_candidates(_ENDPOINTS.get(field.name))

    def _show_candidates(self, kind: EndpointKind | None) -> None:
        listed = self.query_one("#candidates", OptionList)
        region = self.value("region")
        found = [item for item in candidates(region) if item.use is kind] if region and kind else []
        wanted = [item.endpoint for item in found]
        if [option.id for option in listed.options] != wanted:
            listed.clear_options()
            listed.add_options(Option(_words(item), id=item.endpoint) for item in found)
        listed.set_class(not wanted, "-empty")

    def action_to_candidates(self) -> None:
        listed = self.query_one("#candidates", OptionList)
        field = self.focused_field
        if field is not None and field.name in _ENDPOINTS and listed.option_count:
            self._choosing = field.name
            listed.highlighted = 0
            listed.focus()
        else:
            self.focus_next()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        control = self.control(self._choosing)
        assert isinstance(control, Input)  # noqa: S101 - endpoints are typed
        control.value = event.option.id or ""
        control.focus()

    def action_back(self) -> None:
        if isinstance(self.focused, OptionList):
            self.control(self._choosing).focus()
        else:
            super().action_back()

    def accept(self, values: Values) -> str:
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
            raise SettingsError(f"There is a profile {name!r} already.", remedy="Choose another name.")
        save_settings(settings.with_profile(self._agreed(checked(profile))))
        return name

    def _agreed(self, profile: Profile) -> Profile:
        """The profile, plain HTTP allowed where it was asked about before. Raises FieldError, which asks."""
        known = self._profile.endpoints if self._profile.plain_http else self._asked_about
        if profile.endpoints == known:
            return msgspec.structs.replace(profile, plain_http=PLAIN_HTTP_ALLOWED)
        try:
            refuse_plain_http(profile)
        except FieldError as error:
            self._asked_about = profile.endpoints
            remedy = "Write https:// instead, or save once more to use it all the same."
            raise FieldError(error.field, error.message, remedy=remedy) from error
        return profile


def _label(name: str) -> str:
    return _LABELS.get(name, name)


def _words(item: Candidate) -> str:
    zone = ", zone" if item.host.zone else ""
    return f"{item.endpoint.removeprefix('https://')}  {item.host.kind}{zone}"


class NameForm(FormScreen):
    """Returns a name that no profile has."""

    def __init__(self, title: str, name: str) -> None:
        super().__init__(title)
        self._initial = name

    def fields(self) -> list[Field]:
        return [Field("name", "Name", "letters, digits, dots, hyphens, underscores", self._initial)]

    def accept(self, values: Values) -> str:
        if values["name"] in load_settings().profiles:
            raise SettingsError(f"There is a profile {values['name']!r} already.", remedy="Choose another name.")
        return values["name"]


class ProfilesScreen(ConsoleModal):
    """Returns the name of the profile to use from now on, or None to stay with the one in use.

    Where the profile in use was changed, its own name is returned.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", show=False),
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
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = "Profiles"
            dialog.border_subtitle = "enter use · n new · c copy · e edit · r rename · d delete · esc back"
            yield OptionList(id="profiles", markup=False, compact=True)
            yield Static(id="where", markup=False)

    def on_mount(self) -> None:
        self.query_one("#where", Static).update(safe(short_path(settings_path())))
        self._load(self._in_use)
        self.query_one("#profiles").focus()

    def _load(self, select: str = "") -> None:
        try:
            self._settings = load_settings()
        except SettingsError as error:
            self.tell(error)
            self.dismiss(None)
            return
        listed = self.query_one("#profiles", OptionList)
        listed.clear_options()
        names = [SANDBOX_NAME, *self._settings.profiles]
        listed.add_options(Option(self._words(name), id=name) for name in names)
        listed.highlighted = names.index(select) if select in names else 0

    def _words(self, name: str) -> str:
        mark = self.glyphs.running if name == self._in_use else " "
        if name == SANDBOX_NAME:
            return f"{mark} {SANDBOX_NAME:<20} the embedded server, simulated"
        profile = self._settings.profiles[name]
        return f"{mark} {shorten(name, 20, self.glyphs.ellipsis):<20} oss://{profile.bucket} in {profile.region}"

    @property
    def _chosen(self) -> Profile | None:
        """The profile under the cursor; None for the sandbox."""
        listed = self.query_one("#profiles", OptionList)
        if listed.highlighted is None:
            return None
        return self._settings.profiles.get(listed.get_option_at_index(listed.highlighted).id or "")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    def action_back(self) -> None:
        self.dismiss(self._in_use if self._changed else None)

    @work(exit_on_error=False)
    async def action_new(self) -> None:
        name = await self.app.push_screen_wait(ProfileForm())
        if name:
            self._load(name)

    @work(exit_on_error=False)
    async def action_edit(self) -> None:
        profile = self._chosen
        if profile is not None and await self.app.push_screen_wait(ProfileForm(profile)):
            self._changed |= profile.name == self._in_use
            self._load(profile.name)

    @work(exit_on_error=False)
    async def action_copy(self) -> None:
        profile = self._chosen
        if profile is None:
            return
        name = await self.app.push_screen_wait(NameForm(f"Copy of {profile.name}", f"{profile.name}-copy"))
        if name:
            self._save(lambda found: found.with_profile(msgspec.structs.replace(profile, name=name)), select=name)

    @work(exit_on_error=False)
    async def action_rename(self) -> None:
        profile = self._chosen
        if profile is None:
            return
        name = await self.app.push_screen_wait(NameForm(f"Rename {profile.name}", profile.name))
        if name and self._save(lambda found: found.renamed(profile.name, name), select=name):
            self._follow(profile.name, name)

    @work(exit_on_error=False)
    async def action_delete(self) -> None:
        profile = self._chosen
        if profile is None:
            return
        question = (
            f"The profile {profile.name} is taken out of the settings file. The bucket oss://{profile.bucket} and "
            "its objects stay as they are."
        )
        choices = (Choice("", "Keep"), Choice("delete", "Delete", "error"))
        answer = await self.app.push_screen_wait(ConfirmScreen("Delete the profile?", question, choices))
        if answer and self._save(lambda found: found.without(profile.name), select=self._in_use):
            self._follow(profile.name, SANDBOX_NAME)

    def _follow(self, old: str, new: str) -> None:
        """The profile in use goes by another name now."""
        if old == self._in_use:
            self._in_use, self._changed = new, True
            self._load(new)

    def _save(self, change: Callable[[Settings], Settings], *, select: str) -> bool:
        try:
            save_settings(change(load_settings()))
        except ConsoleError as error:
            self.tell(error)
            return False
        self._load(select)
        return True


_BY_HAND = "by hand"


class KeyForm(FormScreen):
    """Writes the connector's credential file and returns its path."""

    def __init__(self, sources: Sequence[SourceState]) -> None:
        super().__init__("AccessKey")
        self._known = {
            str(state.source): state.credentials for state in sources if state.credentials and _foreign(state)
        }

    def fields(self) -> Sequence[Field]:
        written = f"written to {short_path(connector_file())}, readable by you alone (0400)"
        known = tuple((f"{name}: {mask_key_id(pair.access_key_id)}", name) for name, pair in self._known.items())
        hint = "typed in here, or taken over from another tool"
        take = [Field("take", "Pair", hint, _BY_HAND, ((_BY_HAND, _BY_HAND), *known))] if known else []
        return [
            *take,
            Field("access_key_id", "AccessKey ID", f"of a RAM user that may use the bucket; {written}"),
            Field("access_key_secret", "AccessKey secret", "never shown; it cannot be read back here", secret=True),
            Field("security_token", "Security token", "of temporary credentials only", secret=True),
            Field("expiration", "Ends at", "UTC, such as 2030-01-31T08:00:00Z; empty for never"),
        ]

    def accept(self, values: Values) -> str:
        found = self._known.get(values.get("take", _BY_HAND)) or _typed(values)
        return short_path(write_connector_file(found))


def _foreign(state: SourceState) -> bool:
    """Whether it is another tool's pair, which the connector does not find by itself."""
    return isinstance(state.source, FileSource) and state.source.kind != "connector"


def _typed(values: Values) -> Credentials:
    for name, label in (("access_key_id", "AccessKey ID"), ("access_key_secret", "AccessKey secret")):
        if not values[name] or not values[name].isascii() or any(letter.isspace() for letter in values[name]):
            raise FieldError(name, f"The {label} is missing or has blanks in it.", remedy="Paste it again.")
    try:
        expiration = parse_expiration(values["expiration"])
    except ValueError as error:
        raise FieldError("expiration", "That is no time.", remedy="Write it as 2030-01-31T08:00:00Z.") from error
    token = values["security_token"]
    return Credentials(
        values["access_key_id"], Secret(values["access_key_secret"]), Secret(token) if token else None, expiration
    )
