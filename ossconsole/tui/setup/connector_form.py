"""The forms for the connector's configuration and for the accelerator."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ossconsole.config.connector import (
    CONNECTOR_KEYS,
    SYSTEM_CONNECTOR_CONFIG,
    ConnectorKey,
    ConnectorValues,
    connector_config_path,
    default_connector_values,
    load_connector_config,
    save_connector_config,
)
from ossconsole.config.endpoints import classify
from ossconsole.config.errors import SettingsError
from ossconsole.config.profiles import FieldError, Profile
from ossconsole.storage.accelerator import (
    LARGEST_GB,
    ON_READ,
    ON_WRITE,
    SMALLEST_GB,
    AcceleratedPath,
    Accelerator,
    cost_estimate,
)
from ossconsole.tui.kit.dialogs import Field, FormScreen, Values

_WHERE = "where"
_USER, _BOTH = "user", "both"
_TRUE_FALSE = (("true", "true"), ("false", "false"))


class ConnectorForm(FormScreen):
    """Saves the user's configuration file, optionally also the system's; returns the paths written."""

    def __init__(self) -> None:
        super().__init__("Connector configuration")

    def fields(self) -> Sequence[Field]:
        known = load_connector_config(connector_config_path()) or default_connector_values()
        found = [self._field(key, known) for key in CONNECTOR_KEYS]
        both = f"user file and {SYSTEM_CONNECTOR_CONFIG}"
        where = Field(
            _WHERE, "write to", "other programs read the system file", _USER, (("user file", _USER), (both, _BOTH))
        )
        return [*found, where]

    def _field(self, key: ConnectorKey, known: ConnectorValues) -> Field:
        value = known.get(key.name, key.default)
        default = "none" if key.default is None else _text(key.default)
        text = "" if value is None else _text(value)
        return Field(
            key.name, key.name, f"{key.meaning}; default {default}", text, _TRUE_FALSE if key.type is bool else ()
        )

    def accept(self, values: Values) -> list[str]:
        """Write the files. Raises FieldError."""
        typed = {key.name: _typed(key, values[key.name]) for key in CONNECTOR_KEYS}
        kept = {key.name: typed[key.name] for key in CONNECTOR_KEYS if typed[key.name] != key.default}
        try:
            written = [str(save_connector_config(kept))]
            if values[_WHERE] == _BOTH:
                written.append(str(save_connector_config(kept, SYSTEM_CONNECTOR_CONFIG)))
        except SettingsError as error:
            named = next((key.name for key in CONNECTOR_KEYS if error.message.startswith(key.name)), "")
            raise FieldError(named, error.message, remedy=error.remedy) from error
        return written


def _text(value: int | bool | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _typed(key: ConnectorKey, text: str) -> int | bool | str:
    if key.type is bool:
        return text == "true"
    if key.type is str:
        return text
    try:
        return int(text)
    except ValueError as error:
        raise FieldError(key.name, f"{text!r} is not a whole number.", remedy=f"Default: {key.default}.") from error


_TUTORIAL_GB = 500
_POLICIES = (("on first read", ON_READ), ("on write and on first read", ON_WRITE))


class AcceleratorForm(FormScreen):
    """Returns the Accelerator to create; the hint shows the cost while the size is typed."""

    def __init__(self, profile: Profile, present: Accelerator | None) -> None:
        super().__init__("Change the accelerator" if present else "Create an accelerator", save="Continue")
        self._profile = profile
        self._present = present

    def fields(self) -> Sequence[Field]:
        zone = classify(self._profile.accelerated_endpoint or "").zone
        found = self._present or Accelerator(
            zone=zone, quota_gb=_TUTORIAL_GB, paths=(AcceleratedPath(f"{self._profile.dataset_prefix}/"),)
        )
        policy = found.paths[0].policy if found.paths else found.policy
        sizes = f"{SMALLEST_GB} to {LARGEST_GB:,} GB, at most one change per hour"
        return [
            Field("zone", "zone", "zone of the GPU instance, such as cn-hangzhou-j", found.zone),
            Field("quota_gb", "size in GB", sizes, str(found.quota_gb)),
            Field("paths", "paths", "prefixes to cache, separated by commas; empty = whole bucket", _paths(found)),
            Field(
                "policy", "cached", "when an object enters the cache; on read is enough for training", policy, _POLICIES
            ),
        ]

    def hint(self, field: Field) -> str:
        """For the size, also its cost."""
        if field.name != "quota_gb" or not self.value("quota_gb").isdecimal():
            return field.hint
        return f"{field.hint}; {cost_estimate(Accelerator(zone='', quota_gb=int(self.value('quota_gb'))))}"

    def accept(self, values: Values) -> Accelerator:
        """The accelerator. Raises FieldError."""
        quota = values["quota_gb"]
        if not quota.isdecimal() or not SMALLEST_GB <= int(quota) <= LARGEST_GB:
            raise FieldError(
                "quota_gb", f"{quota!r} is not a valid size.", remedy=f"Enter {SMALLEST_GB} to {LARGEST_GB:,} GB."
            )
        if not values["zone"]:
            raise FieldError("zone", "The zone is missing.", remedy="Enter one, such as cn-hangzhou-j.")
        paths = tuple(
            AcceleratedPath(path.strip().lstrip("/"), values["policy"])
            for path in values["paths"].split(",")
            if path.strip()
        )
        wanted = Accelerator(zone=values["zone"], quota_gb=int(quota), paths=paths, policy=values["policy"])
        return msgspec.structs.replace(wanted, name=f"{self._profile.bucket}_data-acc")


def _paths(accelerator: Accelerator) -> str:
    return ", ".join(path.prefix for path in accelerator.paths)
