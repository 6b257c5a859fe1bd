"""ProfilesScreen: the profiles, to use, make, copy, change, rename and delete."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.paths import short_path
from ossconsole.config.profile import SANDBOX_NAME, Profile
from ossconsole.config.settings_file import Settings, load_settings, save_settings, settings_path
from ossconsole.tui.screens.base import ConsoleModal
from ossconsole.tui.screens.confirm import Choice, ConfirmScreen
from ossconsole.tui.setup.form import Field, FormScreen, Values
from ossconsole.tui.setup.profile_form import ProfileForm
from ossconsole.tui.text import safe, shorten


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
