from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import safe_text
from ossconsole.storage.jobs.download import check_inside, plan_downloads
from ossconsole.storage.objects import ObjectSummary

NASTY = st.text(st.sampled_from("ab./\\%~\x00\x1b[\u202e\u200b\ud800é漢 0F"), min_size=1, max_size=40)
KEYS = st.one_of(NASTY, st.text(min_size=1, max_size=1023))


@given(KEYS)
def test_safe_text_leaves_nothing_that_acts_on_a_terminal(key: str) -> None:
    shown = safe_text(key)
    assert shown.isprintable()
    assert shown != key or key.isprintable()


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("[bold]x[/]", "[bold]x[/]"),
        ("a\u202eb", "a\\u202eb"),
        ("tab\t\n", "tab\\t\\n"),
        ("日本.pt", "日本.pt"),
    ],
)
def test_safe_text(key: str, shown: str) -> None:
    assert safe_text(key) == shown


def local_path(folder: Path, key: str) -> Path:
    (item,) = plan_downloads([ObjectSummary(key, 1, 0)], "", folder)
    return item.path


@given(KEYS)
def test_no_key_leaves_the_folder(key: str) -> None:
    folder = Path("/home/user/downloads")
    path = local_path(folder, key)
    parts = path.relative_to(folder).parts
    assert len(parts) == key.count("/") + 1
    for part in parts:
        assert part not in {"", ".", ".."}
        assert part.isprintable()
        assert len(part.encode()) <= 255


@given(st.sets(KEYS, max_size=12))
@example({"/", "//"})
@example({"a/", "a//b", "a"})
def test_different_keys_become_different_files_and_none_is_a_folder_of_another(keys: set[str]) -> None:
    folder = Path("/d")
    planned = list(plan_downloads((ObjectSummary(key, 1, 0) for key in sorted(keys)), "", folder))
    paths = [item.path for item in planned]
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert folder in path.parents
        assert not set(path.parents) & set(paths)


@pytest.mark.parametrize(
    ("key", "relative"),
    [
        ("a/b.pt", "a/b.pt"),
        ("a//b", "a/%/b"),
        ("../../etc/passwd", "%2E%2E/%2E%2E/etc/passwd"),
        ("/abs", "%/abs"),
        ("100%", "100%25"),
        ("50%25", "50%2525"),
        ("50% off", "50% off"),
        ("x\x1b", "x%1B"),
    ],
)
def test_local_path(key: str, relative: str) -> None:
    assert str(local_path(Path("/d"), key).relative_to("/d")) == relative


def test_a_name_that_is_also_a_folder() -> None:
    keys = ["a", "a-b", "a.c/d", "a/b", "a/b/c", "a/d"]
    planned = {
        item.key: str(item.path)
        for item in plan_downloads((ObjectSummary(k, 1, 0) for k in sorted(keys)), "", Path("/"))
    }
    assert planned == {
        "a": "/a",
        "a-b": "/a-b",
        "a.c/d": "/a.c/d",
        "a/b": "/a%/b",
        "a/b/c": "/a%/b%/c",
        "a/d": "/a%/d",
    }


def test_a_link_on_the_disk_does_not_lead_out(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    check_inside(folder, folder / "plain" / "file")
    with pytest.raises(ConsoleError, match="symbolic link"):
        check_inside(folder, folder / "link" / "file")
