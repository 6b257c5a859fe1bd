"""A store and a prefix of its own for each storage test."""

from __future__ import annotations

import pytest


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A prefix that no other test uses."""
    return f"{request.module.__name__}/{request.node.name}/"
