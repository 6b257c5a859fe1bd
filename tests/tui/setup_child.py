"""The console with a fault: saving a key fails in a way nobody foresaw, with the typed secret in a local variable."""

from __future__ import annotations

import sys

from ossconsole.cli import main
from ossconsole.tui.kit.dialogs import Values
from ossconsole.tui.setup.profiles import KeyForm


def _fail(form: KeyForm, values: Values) -> str:
    secret = values["access_key_secret"]
    raise ZeroDivisionError(f"{len(secret) / 0} for {form}")


if __name__ == "__main__":
    KeyForm.accept = _fail  # type: ignore[method-assign,assignment]
    sys.argv = ["ossconsole"]
    main()
