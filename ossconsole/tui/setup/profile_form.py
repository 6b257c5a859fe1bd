"""ProfileForm: one profile, with the endpoints its region may have to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from ossconsole.config.endpoints import EndpointKind, normalise_endpoint
from ossconsole.config.errors import SettingsError
from ossconsole.config.hosts import Candidate, HostKind, candidates, classify
from ossconsole.config.profile import (
    AUTO_CREDENTIALS,
    PLAIN_HTTP_ALLOWED,
    FieldError,
    Profile,
    checked,
    refuse_plain_http,
)
from ossconsole.config.settings_file import load_settings, save_settings
from ossconsole.tui.setup.form import Field, FormScreen, Values
from ossconsole.tui.setup.settings import host_words

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
