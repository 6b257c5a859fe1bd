"""What is remembered comes back, per form and profile; a damaged file is set aside, and nothing here ever raises."""

from __future__ import annotations

import os
import stat

import msgspec
import pytest

from ossconsole.config.files import state_dir
from ossconsole.tui.kit import memory


def test_forms_and_profiles_are_kept_apart() -> None:
    memory.remember("train", "one", {"epochs": 3})
    memory.remember("train", "two", {"epochs": 9})
    memory.remember("upload", "one", {"prefix": "data"})
    assert memory.recall("train", "one") == {"epochs": 3}
    assert memory.recall("train", "two") == {"epochs": 9}
    assert memory.recall("upload", "one") == {"prefix": "data"}
    assert memory.recall("upload", "two") == {}


def test_the_file_is_private_in_a_folder_that_others_may_enter() -> None:
    state_dir().chmod(0o755)
    path = state_dir() / "forms.json"
    path.touch(mode=0o644)
    memory.remember("train", "one", {"epochs": 3})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{not json",
        b"null",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"train/one": 5}',
        b'{"look/": {"theme": [], "glyphs": "braille"}}',
        b'{"look/": {"glyphs": {}}}',
        b'{"bookmarks/a/b": {"prefixes": [1, null, {}]}}',
        b'{"download/a": {"folder": 5}}',
        b'{"upload/a": {"recent": "text"}}',
        b'{"train/a": {"epochs": [1]}}',
    ],
)
def test_a_damaged_file_is_set_aside_and_its_copy_is_named(damaged: bytes) -> None:
    path = state_dir() / "forms.json"
    path.write_bytes(damaged)
    assert memory.recall("look", "") == memory.recall("train", "one") == {}
    text = memory.check()
    (kept,) = state_dir().glob("forms.json.damaged-*")
    assert kept.name in text
    assert kept.read_bytes() == damaged
    assert memory.check() == ""
    assert memory.remember("train", "one", {"epochs": 4}) == ""
    assert memory.recall("train", "one") == {"epochs": 4}


def test_valid_entries_survive_damaged_ones() -> None:
    memory.remember("bookmarks", "p/b", {"prefixes": ["a/"]})
    path = state_dir() / "forms.json"
    path.write_bytes(path.read_bytes().replace(b"{", b'{"look/": 5, ', 1))
    assert "kept as" in memory.remember("train", "one", {"epochs": 4})
    assert memory.recall("bookmarks", "p/b") == {"prefixes": ["a/"]}
    assert memory.recall("train", "one") == {"epochs": 4}
    assert set(msgspec.json.decode(path.read_bytes())) == {"bookmarks/p/b", "train/one"}


@pytest.mark.parametrize("obstacle", ["fifo", "folder", "loop", "device"])
def test_a_path_that_is_not_a_file_is_reported_and_not_changed(obstacle: str) -> None:
    path = state_dir() / "forms.json"
    if obstacle == "fifo":
        os.mkfifo(path)
    elif obstacle == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if obstacle == "loop" else os.devnull)
    before = path.lstat().st_ino
    assert memory.recall("look", "") == {}
    assert "forms.json cannot be read" in memory.check()
    assert "forms.json cannot be read" in memory.remember("train", "one", {"epochs": 4})
    assert path.lstat().st_ino == before


def test_a_state_folder_that_cannot_be_created_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    (state_dir() / "file").touch()
    monkeypatch.setenv("OSSCONSOLE_STATE_DIR", str(state_dir() / "file"))
    assert memory.recall("look", "") == {}
    assert "Not a directory" in memory.remember("train", "one", {"epochs": 4})
