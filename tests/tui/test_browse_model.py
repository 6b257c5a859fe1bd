"""BrowseModel against a source whose pages a test holds back: what shows, where the cursor goes, what is dropped."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest
from rich.cells import cell_len

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.contents import BytesContent, Content, ManifestFindings, TextContent
from ossconsole.storage.listing import SortKey
from ossconsole.storage.objects import ListPage, ObjectSummary
from ossconsole.tui.browse.commands import _names
from ossconsole.tui.browse.detail import Detail, detail_blocks
from ossconsole.tui.browse.model import BrowseModel, CursorPosition, EmptyBucket
from ossconsole.tui.browse.table import selection_words, status_lines
from ossconsole.tui.kit.glyphs import BRAILLE
from ossconsole.tui.kit.text import Line
from tests.storage.fake_source import WAIT_S, GatedSource, page


@pytest.mark.parametrize(
    ("folders", "objects", "words"),
    [(0, 3, "3 selected, 2.3 KB"), (1, 0, "1 folder selected"), (2, 1, "3 selected: 2 folders, 1 object of 2.3 KB")],
)
def test_folders_have_no_size(folders: int, objects: int, words: str) -> None:
    """Their content is not counted, so that "0 B" would be wrong."""
    assert selection_words(folders, objects, 2300 if objects else 0, "object") == words


def test_a_cell_of_a_table_may_have_the_separator_and_a_quote_no_end() -> None:
    content = TextContent("table", ["name,note", 'a,"one, two"', 'b,"no end', "c,d"], truncated=False)
    rows = [
        block.text.rstrip()
        for block in detail_blocks(Detail("t.csv", is_folder=False, content=content), 60, BRAILLE)
        if isinstance(block, Line)
    ]
    assert rows[-4:] == [" name  note", " a     one, two", " b     no end", " c     d"]


def test_an_example_of_a_difference_shows_its_key_in_full() -> None:
    text = "5 bytes instead of 12,288: dataset/imagenet/ILSVRC/Data/train/bees/0.u8"
    detail = Detail("manifest.json", is_folder=False, findings=ManifestFindings(examples=(text,)))
    rows = [block for block in detail_blocks(detail, 48, BRAILLE)[-2:] if isinstance(block, Line)]
    assert rows[0].text == " 5 bytes instead of 12,288:"
    assert rows[1].text.strip() == "dataset/imagenet/ILSVRC/Data/train/bees/0.u8"
    assert max(row.width for row in rows) <= 48


def test_a_cut_line_of_a_text_is_marked() -> None:
    content = TextContent("table", ["a\tb", f"1\t{'x' * 90}"], truncated=False, note="Not a sample.")
    detail = Detail("labels.tsv", is_folder=False, content=content)
    rows = [block.text for block in detail_blocks(detail, 40, BRAILLE) if isinstance(block, Line)]
    note = rows.index(" Not a sample.")
    assert rows[note + 1 : note + 3] == ["", " Table"]
    assert all(len(row) < 40 for row in rows)
    detail.content = TextContent("text", ["short", "x" * 90], truncated=False)
    rows = [block.text for block in detail_blocks(detail, 40, BRAILLE) if isinstance(block, Line)]
    assert rows[-2:] == [" short", f" {'x' * 37}…"]


def test_a_question_shows_keys_that_differ_in_the_middle_in_full() -> None:
    keys = [f"dataset/{'a' * 40}/{part}/{'b' * 50}.jpg" for part in ("train", "valid")]
    sources = [ObjectSummary(key, 1, 0) for key in keys]
    assert _names(sources) == "\n".join(f"  {key}" for key in keys)


def content_rows(content: Content, width: int) -> list[str]:
    blocks = detail_blocks(Detail("object", is_folder=False, content=content), width, BRAILLE)
    return [block.text.rstrip() for block in blocks if isinstance(block, Line)]


def test_a_cell_of_a_table_is_cut_only_for_want_of_room_and_with_a_sign() -> None:
    name = "ILSVRC2012_val_00000001.JPEG"
    content = TextContent("table", ["file\tlabel", f"{name}\t65", "蚂蚁.JPEG\t970"], truncated=False)
    wide, narrow = content_rows(content, 47), content_rows(content, 32)
    assert f" {name}  65" in wide
    assert [cell_len(row[: row.rindex("  ")]) for row in wide[-2:]] == [29, 29]
    assert " ILSVRC2…001.JPEG  65" in narrow


def test_the_heading_of_bytes_counts_those_that_are_shown() -> None:
    rows = content_rows(BytesContent(bytes(5120)), 80)
    assert " First 4,096 bytes" in rows
    assert rows[-1].startswith(" 00ff0 ")


class Watched:
    """A model, and the wait for its next news."""

    def __init__(self) -> None:
        self.source = GatedSource()
        self.news = threading.Semaphore(0)
        self.model = BrowseModel(self.source, self.news.release)

    def gets(self, answer: ListPage | ConsoleError) -> None:
        self.source.answers.put(answer)
        assert self.news.acquire(timeout=WAIT_S)
        self.model.poll()

    def until_settled(self) -> None:
        while not self.model.settled or self.model.refreshing:
            assert self.news.acquire(timeout=WAIT_S)
            self.model.poll()

    @property
    def names(self) -> list[str]:
        view = self.model.view
        return [view.rows.name(int(row)) for row in view.order]


def test_pages_show_as_they_come_and_the_filter_and_order_hold() -> None:
    watched = Watched()
    watched.model.open("a/")
    watched.gets(page(["a/x1", "a/y2"], token="t"))
    assert watched.names == ["x1", "y2"]
    watched.model.filter_by("x")
    watched.model.sort_by(SortKey.SIZE)
    watched.gets(page(["a/x3", "a/x4"]))
    assert watched.names == ["x4", "x1", "x3"]  # the largest first; x1 and x3 are of one size
    watched.model.sort_by(SortKey.SIZE)
    assert watched.names == ["x1", "x3", "x4"]


def test_leaving_a_folder_drops_its_late_page() -> None:
    watched = Watched()
    late = watched.source.answers_of["a/"] = queue.Queue()
    watched.model.open("a/")
    assert watched.source.asked.get(timeout=WAIT_S)[0] == "a/"
    watched.model.open("b/")
    assert watched.source.asked.get(timeout=WAIT_S)[0] == "b/"
    watched.source.answers.put(page(["b/mine"], token="t"))
    late.put(page(["a/late"]))
    watched.source.answers.put(page(["b/too"]))
    watched.source.listings_end()
    watched.model.poll()
    assert watched.names == ["mine", "too"]


def test_history_goes_back_and_forward_and_a_new_folder_ends_forward() -> None:
    watched = Watched()
    for prefix in ("", "a/", "a/b/"):
        watched.model.open(prefix)
    assert watched.model.back()
    assert watched.model.prefix == "a/"
    assert watched.model.back()
    assert watched.model.forward()
    assert watched.model.prefix == "a/"
    watched.model.open("c/")
    assert not watched.model.forward()
    assert watched.model.back()
    assert watched.model.prefix == "a/"


def test_up_remembers_the_folder_and_stops_at_the_top() -> None:
    watched = Watched()
    watched.model.open("a/b/")
    assert watched.model.up()
    assert watched.model.prefix == "a/"
    assert watched.model.pending_cursor == CursorPosition(name="b/")
    assert watched.model.up()
    assert not watched.model.up()


def test_a_refresh_shows_the_old_rows_until_the_new_are_all_there() -> None:
    watched = Watched()
    watched.model.open("")
    watched.gets(page(["1", "2", "3"]))
    watched.model.selection.set(np.array([1], np.uint32), selected=True)
    watched.model.refresh()
    watched.gets(page(["0", "1"], token="t"))
    assert watched.names == ["1", "2", "3"]
    assert watched.model.refreshing
    watched.gets(page(["2", "3"]))
    assert watched.names == ["0", "1", "2", "3"]
    assert not watched.model.refreshing
    assert [watched.model.rows.name(int(row)) for row in watched.model.selection.rows] == ["2"]


def test_a_failed_refresh_keeps_the_rows_and_can_be_resumed() -> None:
    watched = Watched()
    watched.model.open("")
    watched.gets(page(["1"]))
    watched.model.refresh()
    watched.gets(ConsoleError(" ".join(["denied"] * 20)))
    assert watched.names == ["1"]
    assert watched.model.error is not None
    lines = status_lines(watched.model, BRAILLE, 80)
    assert lines[0].text == " 1 loaded; press r to continue."
    assert " ".join(line.text for line in lines[1:]).count("denied") == 20  # in full, though it takes two rows
    watched.model.resume()
    watched.gets(page(["1", "2"]))
    assert watched.names == ["1", "2"]
    assert watched.model.error is None


def test_many_rows_are_sorted_by_a_thread_and_the_old_order_shows_meanwhile() -> None:
    watched = Watched()
    watched.model.open("")
    objects = [ObjectSummary(f"{number:05d}", number, 0) for number in range(30_000)]
    watched.gets(ListPage(objects, [], ""))
    assert watched.news.acquire(timeout=WAIT_S)  # the first view of so many is built behind as well
    watched.model.poll()
    assert watched.names[0] == "00000"
    watched.model.sort_by(SortKey.SIZE)
    assert watched.names[0] == "00000"
    assert not watched.model.settled
    assert watched.news.acquire(timeout=WAIT_S)
    assert watched.model.poll()
    assert watched.names[0] == "29999"
    assert watched.model.settled
    watched.model.filter_by("1234")
    assert watched.news.acquire(timeout=WAIT_S)
    watched.model.poll()
    assert set(watched.names) == {f"{n:05d}" for n in range(30_000) if "1234" in f"{n:05d}"}


def test_stop_keeps_the_loaded_rows() -> None:
    watched = Watched()
    watched.model.open("")
    watched.gets(page(["1"], token="t"))
    assert watched.model.stop()
    assert not watched.model.stop()
    assert watched.names == ["1"]
    watched.model.resume()
    assert watched.model.loading


def test_a_refresh_of_many_rows_is_put_in_order_by_a_thread() -> None:
    watched = Watched()
    watched.model.open("")
    objects = [ObjectSummary(f"{number:05d}", number, 0) for number in range(30_000)]
    watched.gets(ListPage(objects, [], ""))
    watched.until_settled()
    watched.model.sort_by(SortKey.SIZE)
    watched.until_settled()
    watched.model.selection.set(np.array([7], np.uint32), selected=True)
    watched.model.refresh()
    watched.gets(ListPage([*objects[:5], *objects[6:]], [], ""))
    assert len(watched.names) == 30_000  # the old rows, as the new ones are being sorted
    watched.until_settled()
    assert watched.names[:2] == ["29999", "29998"]
    assert len(watched.names) == 29_999
    assert [watched.model.rows.name(int(row)) for row in watched.model.selection.rows] == ["00007"]


def test_up_from_a_folder_with_an_empty_name_opens_the_one_that_has_it() -> None:
    model = BrowseModel(EmptyBucket(), lambda: None)
    for folder, above in (("a//b/", ["a//", "a/", ""]), ("/x/", ["/", ""]), ("a/be", ["a/", ""])):
        model.open(folder)
        opened = []
        while model.up():
            opened.append(model.prefix)
        assert opened == above
    model.close()
