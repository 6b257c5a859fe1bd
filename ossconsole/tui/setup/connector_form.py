"""The form for the connector's configuration."""

from __future__ import annotations

from collections.abc import Sequence

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
from ossconsole.config.errors import SettingsError
from ossconsole.config.profiles import FieldError
from ossconsole.tui.kit.dialogs import Field, FormScreen, Values

_WHERE = "where"
_USER, _BOTH = "user", "both"
_TRUE_FALSE = (("true", "true"), ("false", "false"))


class ConnectorForm(FormScreen):
    """Saves the user's configuration file, optionally also the system's; returns the paths written."""

    def __init__(self) -> None:
        """Raises SettingsError where the user's file cannot be read."""
        super().__init__("Connector configuration")
        self._known = load_connector_config(connector_config_path()) or default_connector_values()

    def fields(self) -> Sequence[Field]:
        found = [self._field(key, self._known) for key in CONNECTOR_KEYS]
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
