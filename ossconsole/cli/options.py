"""The options that commands share, and the bucket that they select."""

from __future__ import annotations

import enum
import functools
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

import click
import msgspec

from ossconsole.cli.output import say
from ossconsole.config.credentials import CredentialSource
from ossconsole.config.errors import SettingsError
from ossconsole.config.files import state_dir
from ossconsole.config.profiles import SANDBOX_NAME, Profile, load_settings
from ossconsole.config.resolve import FIELDS, PROFILE_VARIABLE, Origin, Resolution, option_name, overlay, resolve
from ossconsole.training.settings import AUTO

if TYPE_CHECKING:
    from ossconsole.config.credential_sources import SourceState
    from ossconsole.sandbox.shared import SharedSandbox

F = TypeVar("F", bound=Callable[..., Any])

_say_on_stderr = functools.partial(say, err=True)
READONLY_HELP = "Disable all writes and runs."

_HELP = {
    "profile": "Profile to use; 'sandbox' is the embedded server.",
    "bucket": "Bucket, instead of the profile's.",
    "region": "Region, such as cn-hangzhou.",
    "standard_endpoint": "The bucket's internal endpoint.",
    "accelerated_endpoint": "The OSS accelerator's endpoint for the bucket.",
    "dataset_prefix": "Prefix of the dataset in the bucket.",
    "checkpoint_prefix": "Prefix of the checkpoints in the bucket.",
    "plain_http": "'allowed': permit endpoints of other machines without TLS.",
}


@dataclass(frozen=True)
class OpenTarget:
    """The bucket that a command works on. `sandbox` is the embedded server, None for a real bucket."""

    profile: Profile
    credentials: CredentialSource
    sandbox: SharedSandbox | None
    origins: dict[str, Origin]
    passed_over: tuple[SourceState, ...] = ()
    """The sources of credentials that exist and cannot be used."""


@dataclass(frozen=True)
class Target:
    """The bucket options of a command line; `resolve` and `open` combine them with files and environment."""

    flags: Mapping[str, str] = field(default_factory=dict)

    def with_profile(self, name: str) -> Target:
        """The same target with another profile; all other flags stay."""
        return Target({**self.flags, "profile": name})

    @property
    def names_sandbox(self) -> bool:
        """Whether the sandbox was asked for by name, not taken because there is no profile."""
        return (self.flags.get("profile") or os.environ.get(PROFILE_VARIABLE)) == SANDBOX_NAME

    def refuse_flags(self, unusable: Collection[str], reason: str) -> None:
        """Raises SettingsError where one of these flags was given: an option without effect is a mistake."""
        given = [option_name(name) for name in self.flags if name in unusable]
        if given:
            raise SettingsError(f"{', '.join(given)}: {reason}", remedy="Leave it out.")

    def resolve(self) -> Resolution | None:
        """The profile with the origin of each value; None means the sandbox. Raises SettingsError."""
        return resolve(load_settings(), self.flags, os.environ)

    @contextmanager
    def open(self, say: Callable[[str], None] = _say_on_stderr) -> Iterator[OpenTarget]:
        """Finds the credentials, or starts the sandbox and reports that through `say`. Raises ConsoleError."""
        from ossconsole.config.credential_sources import FixedSource, select_credentials

        resolution = self.resolve()
        if resolution is not None:
            selected = select_credentials(resolution.profile)
            yield OpenTarget(
                resolution.profile, selected.source, None, resolution.origins, passed_over=selected.passed_over
            )
            return
        from ossconsole.sandbox.shared import SharedSandbox

        say(f"{'Working' if self.names_sandbox else 'No profile is active: working'} on the embedded sandbox.")
        with SharedSandbox.open(state_dir() / "sandbox") as sandbox:
            if slowed := sandbox.slowed_words():
                say(slowed)
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


def settings_options(settings: type[msgspec.Struct], only: Collection[str] | None = None) -> Callable[[F], F]:
    """Adds one option for each field of a settings struct, which the command gets under the field's name.

    `only` names the fields to add, None for all.

    Range, default and help come from the field's type, default and `msgspec.Meta(description=...)`; `extra` may give
    `choices`, `metavar`, and with `auto` the value of the word auto. A boolean becomes a flag, with a `--no-` form
    where its default is True.
    """

    def decorate(command: F) -> F:
        for field_ in reversed(msgspec.structs.fields(settings)):
            if only is None or field_.name in only:
                command = _settings_option(field_)(command)
        return command

    return decorate


def _settings_option(described: msgspec.structs.FieldInfo) -> Callable[[F], F]:
    kind, meta = described.type, msgspec.Meta()
    if get_origin(kind) is Annotated:
        kind, *metas = get_args(kind)
        meta = _merged(metas)
    name, default, extra = option_name(described.name), described.default, meta.extra or {}
    if kind is bool:
        switch = f"{name}/--no-{name[2:]}" if default else name
        return click.option(switch, described.name, is_flag=True, default=default, help=meta.description)
    accepted, metavar = kind, extra.get("metavar")
    if "choices" in extra or issubclass(kind, enum.Enum):
        accepted = click.Choice([str(choice) for choice in extra.get("choices", kind)])
    elif kind in (int, float) and (meta.ge, meta.gt) != (None, None):
        bounds = (meta.ge if meta.gt is None else meta.gt, meta.le if meta.lt is None else meta.lt)
        kinds: Any = click.IntRange if kind is int else FiniteRange
        accepted = kinds(*bounds, min_open=meta.gt is not None, max_open=meta.lt is not None)
    if "auto" in extra:
        accepted, metavar = AutoOr(accepted, extra["auto"]), f"{kind.__name__.upper()}|{AUTO}"
        default = AUTO if default == extra["auto"] else default
    return click.option(
        name,
        described.name,
        type=accepted,
        default=str(default) if isinstance(default, enum.Enum) else default,
        show_default=default != "",
        metavar=metavar,
        help=meta.description,
    )


class FiniteRange(click.FloatRange):
    """A range of numbers without nan, which every range of click has, and without infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class AutoOr(click.ParamType):  # type: ignore[type-arg] # it is not generic in click 8.1
    """A number, or the word auto, which stands for `auto`."""

    def __init__(self, number: Any, auto: object) -> None:
        self.number = number
        self.auto = auto
        self.name = number.name

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """The number, or that of auto."""
        return self.auto if value == AUTO else self.number.convert(value, param, ctx)


def _merged(metas: Sequence[msgspec.Meta]) -> msgspec.Meta:
    """One Meta of all of a field: nested Annotated types give several."""
    names = ("gt", "ge", "lt", "le", "description", "extra")
    given = {name: value for meta in metas for name in names if (value := getattr(meta, name)) is not None}
    return msgspec.Meta(**given)


def label_options(command: F) -> F:
    """Adds the label files of a dataset: `--val-labels` and `--class-index`."""
    for name, text in (
        ("--class-index", "The tutorial's class index; none = number only the classes found."),
        ("--val-labels", "Labels of a flat val/: the tutorial's JSON, Kaggle's CSV, or a CSV of name and class."),
    ):
        command = click.option(name, default="", metavar="FILE", help=text)(command)
    return command


def json_option(command: F) -> F:
    """Adds `--json` to a command that prints one document, which gets it as `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def json_lines_option(command: F) -> F:
    """Adds `--json` to a command that prints events, which gets it as `as_json: bool`."""
    text = "Print one JSON object per line; the last one is the summary."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def readonly_option(command: F) -> F:
    """Adds `--readonly` to a command, which gets it as `readonly: bool`."""
    return click.option("--readonly", is_flag=True, help=READONLY_HELP)(command)


def mouse_option(command: F) -> F:
    """Adds `--no-mouse` to a command, which gets it as `no_mouse: bool`."""
    text = "Leave the mouse to the terminal, to select text."
    return click.option("--no-mouse", is_flag=True, help=text)(command)


def reads_only(command: F) -> F:
    """Accepts `--readonly` for a command that changes nothing anyway."""
    return click.option("--readonly", is_flag=True, expose_value=False, hidden=True)(command)


class ForwardingGroup(click.Group):
    """A group whose options may also precede the command: each is passed to the command, as if typed after it.

    An option typed after the command takes precedence. Raises UsageError for an option that the command does not have.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command and its arguments, with the options typed before it."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is None or isinstance(command, ForwardingGroup):  # which passes its parents' options on
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
