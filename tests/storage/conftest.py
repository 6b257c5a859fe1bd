"""A store and a prefix of its own for each storage test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ossconsole.storage.client import ObjectStore
from tests.sandboxed import Sandboxed


@pytest.fixture
def store(sandboxed_bucket: Sandboxed) -> Iterator[ObjectStore]:
    opened = sandboxed_bucket.store()
    yield opened
    opened.close()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A prefix that no other test uses."""
    return f"{request.module.__name__}/{request.node.name}/"
