from __future__ import annotations

import queue
import threading

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.listing import Listing, ListingState
from tests.storage.fake_source import WAIT_S, GatedSource, page


def names(listing: Listing) -> list[str]:
    return [listing.rows.name(row) for row in range(listing.rows.count)]


def test_rows_are_there_after_the_first_page_while_the_rest_comes() -> None:
    source, first = GatedSource(), threading.Event()
    listing = Listing(source, "a/", on_change=lambda _: first.set())
    source.answers.put(page(["a/1", "a/2"], prefixes=["a/x/"], token="t"))
    listing.start()
    assert first.wait(WAIT_S)
    assert names(listing) == ["x/", "1", "2"]
    assert listing.state is ListingState.LOADING
    assert listing.first_rows_s is not None
    source.answers.put(page(["a/3"]))
    assert listing.wait(WAIT_S)
    assert listing.is_complete
    assert names(listing) == ["x/", "1", "2", "3"]
    assert [source.asked.get_nowait() for _ in range(2)] == [("a/", ""), ("a/", "t")]


def test_a_page_that_comes_after_stop_is_dropped_and_asked_for_again() -> None:
    source = GatedSource()
    listing = Listing(source, "")
    listing.start()
    assert source.asked.get(timeout=WAIT_S) == ("", "")
    listing.stop()
    assert listing.state is ListingState.STOPPED
    listing.start()
    assert source.asked.get(timeout=WAIT_S) == ("", "")
    source.answers.put(page(["late", "page"]))
    source.answers.put(page(["late", "page"]))
    assert listing.wait(WAIT_S)
    assert names(listing) == ["late", "page"]  # once, though both requests were answered


def test_a_late_page_of_one_folder_never_lands_in_another() -> None:
    source = GatedSource()
    source.answers_of = {"left/": queue.Queue(), "right/": queue.Queue()}
    left, right = Listing(source, "left/"), Listing(source, "right/")
    left.start()
    assert source.asked.get(timeout=WAIT_S)[0] == "left/"
    left.stop()
    right.start()
    assert source.asked.get(timeout=WAIT_S)[0] == "right/"
    source.answers_of["right/"].put(page(["right/1"], token="t"))
    source.answers_of["left/"].put(page(["left/1"]))
    source.answers_of["right/"].put(page(["right/2"]))
    source.listings_end()
    assert names(left) == []
    assert names(right) == ["1", "2"]


def test_after_a_failure_it_continues_with_the_page_that_failed() -> None:
    source = GatedSource()
    source.answers.put(page(["1"], token="second"))
    source.answers.put(ConsoleError("gone"))
    listing = Listing(source, "")
    listing.start()
    assert listing.wait(WAIT_S)
    assert listing.state is ListingState.FAILED
    assert listing.error is not None
    assert listing.error.message == "gone"
    source.answers.put(page(["2"]))
    listing.start()
    assert listing.wait(WAIT_S)
    assert names(listing) == ["1", "2"]
    assert [source.asked.get_nowait()[1] for _ in range(3)] == ["", "second", "second"]


def test_a_seek_in_the_middle_of_a_name_keeps_names_relative_to_the_folder() -> None:
    source = GatedSource()
    source.answers.put(page(["train/n01_1", "train/n01_2"]))
    listing = Listing(source, "train/n01")
    listing.start()
    assert listing.wait(WAIT_S)
    assert names(listing) == ["n01_1", "n01_2"]
    assert listing.rows.key(1) == "train/n01_2"


def test_a_real_prefix_of_several_pages(store: ObjectStore, prefix: str) -> None:
    keys = [f"{prefix}{number:03d}" for number in range(7)] + [f"{prefix}dir/x", f"{prefix}dir//y"]
    for key in keys:
        store.put(key, b"x")

    class SmallPages:
        def list_page(self, prefix: str, **arguments: object) -> object:
            return store.list_page(
                prefix, delimiter=str(arguments["delimiter"]), token=str(arguments["token"]), max_keys=3
            )

    listing = Listing(SmallPages(), prefix)  # type: ignore[arg-type]
    listing.start()
    assert listing.wait(WAIT_S)
    assert listing.is_complete
    assert sorted(names(listing)) == [*(f"{number:03d}" for number in range(7)), "dir/"]
    inner = Listing(store, f"{prefix}dir/")
    inner.start()
    assert inner.wait(WAIT_S)
    assert names(inner) == ["/", "x"]
