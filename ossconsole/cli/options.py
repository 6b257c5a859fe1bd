"""The options every command shares, and the bucket they lead to."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ossconsole.cli.output import say
from ossconsole.config.credentials import CredentialSource
from ossconsole.config.errors import SettingsError
from ossconsole.config.files import state_dir
from ossconsole.config.profiles import Profile, load_settings
from ossconsole.config.resolve import FIELDS, Origin, Resolution, option_name, overlay, resolve

if TYPE_CHECKING:
    from ossconsole.sandbox.shared import SharedSandbox

F = TypeVar("F", bound=Callable[..., Any])

READONLY_HELP = "Change nothing in the bucket, and start no run."

_HELP = {
    "profile": "Profile to work on; 'sandbox' is the embedded server.",
    "bucket": "Bucket, instead of the profile's.",
    "region": "Region, such as cn-hangzhou.",
    "standard_endpoint": "The bucket's internal endpoint.",
    "accelerated_endpoint": "The OSS accelerator's endpoint for the bucket.",
    "dataset_prefix": "Where the dataset lies in the bucket.",
    "checkpoint_prefix": "Where checkpoints are written.",
    "plain_http": "'allowed': use endpoints without TLS on other machines.",
}


def _say_on_stderr(text: str) -> None:
    say(text, err=True)


@dataclass(frozen=True)
class OpenTarget:
    """The bucket a command works on. `sandbox` is the running server when it is the embedded one."""

    profile: Profile
    credentials: CredentialSource
    sandbox: SharedSandbox | None
    origins: dict[str, Origin]


@dataclass(frozen=True)
class Target:
    """What was typed about the bucket; files, environment and sandbox are looked at by `resolve` and `open` only."""

    flags: Mapping[str, str] = field(default_factory=dict)

    def with_profile(self, name: str) -> Target:
        """The same target on another profile: every other flag stays."""
        return Target({**self.flags, "profile": name})

    def refuse_flags(self, unusable: Collection[str], reason: str) -> None:
        """Raises SettingsError where one of these flags was given: an option that has no effect is a mistake."""
        given = [option_name(name) for name in self.flags if name in unusable]
        if given:
            raise SettingsError(f"{', '.join(given)}: {reason}", remedy="Leave it out.")

    def resolve(self) -> Resolution | None:
        """The profile with the origin of each value; None means the sandbox. Raises SettingsError."""
        return resolve(load_settings(), self.flags, os.environ)

    @contextmanager
    def open(self, say: Callable[[str], None] = _say_on_stderr) -> Iterator[OpenTarget]:
        """Finds the credentials, or the sandbox (started where none runs), and says so. Raises ConsoleError."""
        from ossconsole.config.credential_sources import FixedSource, find_credentials

        resolution = self.resolve()
        if resolution is not None:
            credentials = find_credentials(resolution.profile)
            yield OpenTarget(resolution.profile, credentials, None, resolution.origins)
            return
        from ossconsole.sandbox.shared import SharedSandbox

        say("No profile is active: working on the embedded sandbox.")
        with SharedSandbox.open(state_dir() / "sandbox") as sandbox:
            sandbox.notify = lambda message, remedy: say(f"{message} {remedy}".strip())
            resolution = overlay(sandbox.profile(), self.flags, os.environ)
            yield OpenTarget(resolution.profile, FixedSource(sandbox.credentials()), sandbox, resolution.origins)


def profile_options(command: F) -> F:
    """Adds the shared options to a click command, which gets them as one `target: Target`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        flags = {name: kwargs.pop(name) for name in _HELP}
        target = Target({name: value for name, value in flags.items() if value})
        return command(*args, target=target, **kwargs)

    decorated: Any = wrapper
    for name in reversed(("profile", *FIELDS)):
        decorated = click.option(option_name(name), name, metavar=name.upper().rsplit("_", 1)[-1], help=_HELP[name])(
            decorated
        )
    return decorated  # type: ignore[no-any-return]


def readonly_option(command: F) -> F:
    """Adds `--readonly` to a command that acts on it, as `readonly: bool`."""
    return click.option("--readonly", is_flag=True, help=READONLY_HELP)(command)


def reads_only(command: F) -> F:
    """Accepts `--readonly` for a command that changes nothing anyway."""
    return click.option("--readonly", is_flag=True, expose_value=False, hidden=True)(command)


class ForwardingGroup(click.Group):
    """A group whose options may also stand before the command: each is handed to the command, as if typed after it.

    What is typed after the command wins. Raises UsageError for an option that the command does not have.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command is None or isinstance(command, ForwardingGroup):  # which hands down what its parents got
            return name, command, rest
        known = {option for parameter in command.params for option in parameter.opts}
        typed: list[str] = []
        for option, *value in _given(ctx):
            if option not in known:
                raise click.UsageError(f"{name!r} cannot be used with {option}.", ctx)
            typed += [option, *value]
        return name, command, [*typed, *rest]


def _given(context: click.Context) -> Iterator[list[str]]:
    """The options given to a group and its parents, outermost first: each with its value, a flag alone."""
    if context.parent is not None:
        yield from _given(context.parent)
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if isinstance(parameter, click.Option) and value:
            yield [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], str(value)]
