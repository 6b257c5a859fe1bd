"""`ossconsole config`: the paths of the settings, their values and origins, a first profile, a check."""

from __future__ import annotations

import contextlib
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from ossconsole.cli.options import ForwardingGroup, Target, json_option, profile_options, reads_only
from ossconsole.cli.output import say, say_json
from ossconsole.config.connector import connector_config_path, load_connector_config
from ossconsole.config.credential_sources import describe_credentials, find_credentials, write_connector_file
from ossconsole.config.credentials import Credentials, Secret, mask_key_id
from ossconsole.config.endpoints import EndpointKind, candidates
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import (
    AUTO_CREDENTIALS,
    PLAIN_HTTP_ALLOWED,
    Profile,
    Settings,
    checked,
    load_settings,
    refuse_plain_http,
    save_settings,
    settings_path,
)
from ossconsole.config.resolve import FIELDS
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
        raise SettingsError(
            "No profile is active: commands use the embedded sandbox.", remedy="Create one: ossconsole config init"
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
@click.option("--region", prompt="Region (such as cn-hangzhou)", help="The bucket's region.")
@click.option("--bucket", prompt="Bucket", help="The bucket.")
@click.option("--standard-endpoint", default="", help="Default: the region's internal endpoint.")
@click.option("--accelerated-endpoint", help="The accelerator's endpoint, if the bucket has one.")
@click.option("--credentials", default=AUTO_CREDENTIALS, show_default=True, help="The source, such as aliyun:NAME.")
@click.option("--plain-http", type=click.Choice([PLAIN_HTTP_ALLOWED]), help="Permit endpoints without TLS.")
@click.option("--force", is_flag=True, help="Replace an existing profile.")
@click.pass_context
def init(context: click.Context, /, *, force: bool, **fields: Any) -> None:
    """Write a profile and make it the active one."""
    settings, name = load_settings(), fields["name"]
    if name in settings.profiles and not force:
        raise SettingsError(f"The profile {name!r} exists already.", remedy="Give another --name, or --force.")
    fields["standard_endpoint"] = fields["standard_endpoint"] or candidates(fields["region"])[0].endpoint
    profile = Profile(**fields)
    refuse_plain_http(checked(profile))  # before more questions
    if _asks(context):
        profile = _with_accelerated(profile)
    save_settings(settings.with_profile(profile, activate=True))
    say(f"Wrote {settings_path()}.")
    if _asks(context):
        _ask_key(profile)
    else:
        say(f"Credentials: {describe_credentials(profile)}")
    say("Next: ossconsole doctor")


def _asks(context: click.Context) -> bool:
    """Whether the user answers questions: the region or the bucket was not given as an option."""
    return any(context.get_parameter_source(name) is ParameterSource.PROMPT for name in ("region", "bucket"))


def _with_accelerated(profile: Profile) -> Profile:
    """The profile with the accelerated endpoint that the user enters; asks again for one that is not valid."""
    if profile.accelerated_endpoint:
        return profile
    likely = [found.endpoint for found in candidates(profile.region) if found.use is EndpointKind.ACCELERATED]
    say(f"An accelerator's endpoint looks like {likely[0]}.")
    while True:
        text = click.prompt("Accelerated endpoint (empty: the bucket has no accelerator)", default="", err=True)
        changed = msgspec.structs.replace(profile, accelerated_endpoint=text.strip() or None)
        try:
            refuse_plain_http(checked(changed))
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
    key_id = click.prompt("AccessKey ID (empty: later, in the console or in the environment)", default="", err=True)
    if key_id.strip():
        secret = click.prompt("AccessKey secret", hide_input=True, err=True)
        path = write_connector_file(Credentials(key_id.strip(), Secret(secret.strip())))
        say(f"Wrote {path}, readable only by you.")


def _check_keys(settings: Settings) -> None:
    """Raises SettingsError for a key of the console that is not valid."""
    if settings.keys:
        from ossconsole.tui.kit.actions import checked_keymap

        checked_keymap(settings.keys)


@config.command()
@reads_only
def validate() -> None:
    """Check the settings file and the connector's; exit 2 with file, line and key where one is invalid."""
    settings = load_settings()
    values = load_connector_config()
    profiles, active = counted(len(settings.profiles), "profile"), settings.active or "none (the sandbox)"
    _check_keys(settings)
    say(f"{settings_path()}: {profiles}, active: {active}")
    say(f"{connector_config_path()}: {'valid' if values else 'does not exist yet, the defaults apply'}")
