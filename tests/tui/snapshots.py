"""Pictures of screens hold for the Textual they were taken with; another one may draw the same screen differently."""

from __future__ import annotations

from importlib.metadata import version

import pytest

TAKEN_WITH = "8.2.8"

pictured = pytest.mark.skipif(
    version("textual") != TAKEN_WITH, reason=f"the pictures were taken with Textual {TAKEN_WITH}"
)
