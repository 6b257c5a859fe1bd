"""KeyForm: a key pair by hand, or taken over from another tool, written where the connector reads it."""

from __future__ import annotations

from collections.abc import Sequence

from ossconsole.config.credential_files import connector_file, parse_expiration, write_connector_file
from ossconsole.config.credentials import Credentials
from ossconsole.config.paths import short_path
from ossconsole.config.profile import FieldError
from ossconsole.config.secret import Secret, mask_key_id
from ossconsole.config.sources import FileSource, SourceState
from ossconsole.tui.setup.form import Field, FormScreen, Values

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
