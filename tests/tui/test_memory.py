"""What is remembered comes back, per form and profile, and a damaged file forgets rather than fails."""

from __future__ import annotations

import stat

from ossconsole.config.paths import state_dir
from ossconsole.tui import memory


def test_forms_and_profiles_are_kept_apart() -> None:
    memory.remember("train", "one", {"epochs": 3})
    memory.remember("train", "two", {"epochs": 9})
    memory.remember("upload", "one", {"source": "/data"})
    assert memory.recall("train", "one") == {"epochs": 3}
    assert memory.recall("train", "two") == {"epochs": 9}
    assert memory.recall("upload", "one") == {"source": "/data"}
    assert memory.recall("upload", "two") == {}


def test_the_file_is_private_and_a_damaged_one_is_forgotten() -> None:
    memory.remember("train", "one", {"epochs": 3})
    path = state_dir() / "forms.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("{not json")
    assert memory.recall("train", "one") == {}
    memory.remember("train", "one", {"epochs": 4})
    assert memory.recall("train", "one") == {"epochs": 4}
