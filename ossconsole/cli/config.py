"""`ossconsole config`: the paths of the settings, their values and origins, a first profile, a check."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

import click
import msgspec

from ossconsole.cli.options import ForwardingGroup, Target, json_option, profile_options, reads_only
from ossconsole.cli.output import say, say_json
from ossconsole.config.connector import connector_config_path, load_connector_config
from ossconsole.config.credential_sources import describe_credentials, find_credentials, write_connector_file
from ossconsole.config.credentials import Credentials, Secret, mask_key_id
from ossconsole.config.endpoints import EndpointKind, likely_endpoint
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import (
    AUTO_CREDENTIALS,
    PLAIN_HTTP_ALLOWED,
    FieldError,
    Profile,
    Settings,
    check_new_name,
    checked,
    load_settings,
    refuse_misuse,
    refuse_other_region,
    refuse_plain_http,
    save_settings,
    settings_path,
)
from ossconsole.config.resolve import FIELDS, option_name
from ossconsole.config.text import counted

_SHOWN = (*FIELDS, "credentials")


@click.group(cls=ForwardingGroup)
def config() -> None:
    """Show, create and validate the settings."""


@config.command()
@reads_only
def path() -> None:
    """Print the path of the settings file and of the connector's."""
    say(settings_path())
    say(connector_config_path())


@config.command()
@json_option
@profile_options
@reads_only
def show(as_json: bool, target: Target) -> None:
    """Show each setting in use and its origin; secrets are masked."""
    resolution = target.resolve()
    if resolution is None:
        reason = "The sandbox was named" if target.names_sandbox else "No profile is active"
        raise SettingsError(
            f"{reason}: commands use the embedded sandbox, which has no settings.",
            remedy="Create a profile: ossconsole config init",
        )
    values = msgspec.structs.asdict(resolution.profile)
    rows = {name: {"value": values[name], "origin": str(resolution.origins[name])} for name in _SHOWN}
    rows["credentials in use"] = {"value": describe_credentials(resolution.profile), "origin": ""}
    if as_json:
        say_json({"profile": resolution.profile.name, "settings": rows})
        return
    say(f"{'profile':<22}{resolution.profile.name}")
    for name, row in rows.items():
        origin = f"  ({row['origin']})" if row["origin"] else ""
        say(f"{name:<22}{row['value'] or '-'}{origin}")


@config.command()
@click.option("--name", default="default", show_default=True, help="Name of the profile.")
@click.option("--region", default="", help="The bucket's region; prompted for if omitted.")
@click.option("--bucket", default="", help="The bucket; prompted for if omitted.")
@click.option("--standard-endpoint", default="", help="Default: the region's internal endpoint.")
@click.option("--accelerated-endpoint", help="The accelerator's endpoint, if the bucket has one.")
@click.option("--credentials", default=AUTO_CREDENTIALS, show_default=True, help="The source, such as aliyun:NAME.")
@click.option("--plain-http", type=click.Choice([PLAIN_HTTP_ALLOWED]), help="Permit endpoints without TLS.")
@click.option("--force", is_flag=True, help="Replace an existing profile.")
def init(*, force: bool, **fields: Any) -> None:
    """Write a profile and make it the active one."""
    settings, name = load_settings(), fields["name"]
    check_new_name(name)  # before any question
    if name in settings.profiles and not force:
        raise SettingsError(f"The profile {name!r} exists already.", remedy="Give another --name, or --force.")
    asks = [field for field in _QUESTIONS if not fields[field]]
    for field in asks:
        fields[field] = _ask_place(fields, field)
    profile = _draft(fields)
    _check(profile)  # before more questions
    if asks:
        profile = _with_accelerated(profile)
    save_settings(settings.with_profile(profile, activate=True))
    say(f"Wrote {settings_path()}.")
    if asks:
        _ask_key(profile)
    else:
        say(f"Credentials: {describe_credentials(profile)}")
    say("Next: ossconsole doctor")


_QUESTIONS = {"region": "Region (such as cn-hangzhou)", "bucket": "Bucket"}


def _draft(fields: Mapping[str, Any]) -> Profile:
    endpoint = fields["standard_endpoint"] or likely_endpoint(EndpointKind.STANDARD, fields["region"])
    return Profile(**{**fields, "standard_endpoint": endpoint})


def _check(profile: Profile) -> None:
    """Raises FieldError for a value that cannot be right."""
    found = checked(profile)
    refuse_other_region(found)
    refuse_misuse(found)
    refuse_plain_http(found)


def _ask_place(fields: Mapping[str, Any], field: str) -> str:
    """The region or the bucket that the user enters; asks again for one that is not valid. Raises SettingsError."""
    while True:
        typed = _prompt(_QUESTIONS[field], instead=f"Give {option_name(field)}.").strip()
        try:
            checked(_draft({**fields, "bucket": "any-bucket", field: typed}))  # the bucket is asked for later
        except FieldError as error:
            if error.field == field:
                say(str(error), err=True)
                continue
        return typed


def _prompt(text: str, *, instead: str, **options: Any) -> str:
    """The user's answer. Raises SettingsError, with the remedy `instead`, where nobody can answer."""
    try:
        return str(click.prompt(text, err=True, **options))
    except click.Abort:
        say("", err=True)  # ends the line of the question
        if sys.stdin.isatty():
            raise
        raise SettingsError(f"The question {text!r} has no answer: the input has ended.", remedy=instead) from None


def _with_accelerated(profile: Profile) -> Profile:
    """The profile with the accelerated endpoint that the user enters; asks again for one that is not valid."""
    if profile.accelerated_endpoint:
        return profile
    likely = likely_endpoint(EndpointKind.ACCELERATED, profile.region)
    say(f"An accelerator's endpoint looks like {likely}.")
    question, instead = "Accelerated endpoint (empty: the bucket has no accelerator)", "Give --accelerated-endpoint."
    while True:
        text = _prompt(question, instead=instead, default="", show_default=False)
        changed = msgspec.structs.replace(profile, accelerated_endpoint=text.strip() or None)
        try:
            _check(changed)
        except SettingsError as error:
            say(str(error), err=True)
        else:
            return changed


def _ask_key(profile: Profile) -> None:
    """Writes the AccessKey that the user enters, unless a source has one already. Raises SettingsError."""
    with contextlib.suppress(ConsoleError):
        found = find_credentials(profile)()
        say(f"Credentials: {mask_key_id(found.access_key_id)} from {found.source}.")
        return
    later = "The profile is written; enter the key on the Setup screen or in the environment."
    question = "AccessKey ID (empty: later, in the console or in the environment)"
    key_id = _prompt(question, instead=later, default="", show_default=False)
    if key_id.strip():
        secret = _prompt("AccessKey secret", instead=later, hide_input=True)
        path = write_connector_file(Credentials(key_id.strip(), Secret(secret.strip())))
        say(f"Wrote {path}, readable only by you.")


def _check_keys(settings: Settings) -> None:
    """Raises SettingsError for a key of the console that is not valid."""
    if settings.keys:
        from ossconsole.tui.kit.actions import checked_keymap

        checked_keymap(settings.keys)


@config.command(short_help="Check the settings file and the connector's.")
@reads_only
def validate() -> None:
    """Check the settings file and the connector's; exit 2 with file, line and key where one is invalid."""
    settings = load_settings()
    values = load_connector_config()
    profiles, active = counted(len(settings.profiles), "profile"), settings.active or "none (the sandbox)"
    _check_keys(settings)
    say(f"{settings_path()}: {profiles}, active: {active}")
    say(f"{connector_config_path()}: {'valid' if values else 'does not exist yet, the defaults apply'}")
