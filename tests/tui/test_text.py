"""Lines and figures in words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ossconsole.tui.kit import text
from ossconsole.tui.kit.glyphs import for_terminal
from ossconsole.tui.kit.text import Line
from tests.tui.fakes import START


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0, "0"),
        (0.05, "0.050"),
        (0.00625, "0.00625"),
        (0.000391, "0.00039"),
        (0.000013, "1.3e-05"),
        (1.2345, "1.23"),
        (123.4, "123"),
        (12345.0, "12,345"),
        (2e9, "2e+09"),
    ],
)
def test_numbers(value: float | None, expected: str) -> None:
    assert text.number(value) == expected


@pytest.mark.parametrize(
    ("count", "binary", "expected"),
    [(0, False, "0 B"), (999, False, "999 B"), (1500, False, "1.5 KB"), (44_812_345, False, "44.8 MB"),
     (2**30, True, "1.0 GiB"), (5e15, False, "5.0 PB"), (None, False, "–")],
)  # fmt: skip
def test_sizes(count: float | None, binary: bool, expected: str) -> None:
    assert text.size(count, binary=binary) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0:00"), (42, "0:42"), (725, "12:05"), (3723, "1:02:03"), (273_600, "3d 04h"), (None, "–"), (-5, "0:00")],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert text.duration(seconds) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.0042,), "4.2 ms"),
        ((0.05, 0.254), "50 / 254 ms"),
        ((0.0074, 3.256), "0.01 / 3.26 s"),
        ((None, None), "–"),
        ((None, 0.1), "– / 100 ms"),
    ],
)
def test_short_times_share_a_unit(values: tuple[float | None, ...], expected: str) -> None:
    assert text.short_times(values) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain.txt", "plain.txt"),
        ("[bold]x", "[bold]x"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("line\nbreak\ttab", "line\\nbreak\\ttab"),
        ("gpj.\u202egnp", "gpj.\\u202egnp"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("目录", "目录"),
        ("bad\udc80", "bad\\udc80"),
    ],
)
def test_names_cannot_move_the_cursor_or_hide(name: str, expected: str) -> None:
    assert text.safe(name) == expected


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (40, "worth at most 2.7x (estimated), wait…"),
        (30, "worth at most 2.7x…"),
        (17, "worth at most…"),
        (6, "worth…"),
    ],
)
def test_sentences_are_cut_between_words(width: int, expected: str) -> None:
    """Half of a number is another number, and a number without its unit is none."""
    assert text.shorten("worth at most 2.7x (estimated), wait 40 %", width) == expected


def test_a_long_key_is_cut_inside() -> None:
    assert text.shorten("checkpoint checkpoints/resnet18-20250615-150640.pt", 30) == "checkpoint checkpoints/resnet…"


def test_in_a_sentence_the_key_gives_way_first() -> None:
    sentence = "checkpoint checkpoints/resnet18-20250615-150640-a1b2-e05-s000110.pt: 3.0 MB in 1.2 s"
    short = text.shorten_around_key(sentence, 66)
    assert len(short) == 66
    assert short.startswith("checkpoint checkpoints/res")
    assert short.endswith("e05-s000110.pt: 3.0 MB in 1.2 s")
    assert text.shorten_around_key(sentence, 46).endswith("…")
    assert text.shorten_around_key("short", 46) == "short"


def test_shortening_in_the_middle_keeps_both_ends() -> None:
    assert text.shorten("abcdefghij", 6) == "abcde…"
    assert text.shorten_middle("abcdefghijkl", 9) == "abcd…ijkl"
    assert text.shorten("abc", 0) == ""


def test_a_number_and_its_unit_stay_in_one_line() -> None:
    assert text.wrap("hit rate 100 % (estimated)", 12) == ["hit rate", "100 %", "(estimated)"]
    assert text.wrap("read at 1.3 MB/s in 20 s.", 12) == ["read at", "1.3 MB/s in", "20 s."]


@given(name=st.text(max_size=40), width=st.integers(0, 30))
def test_shortened_names_fit(name: str, width: int) -> None:
    clean = text.safe(name)
    assert cell_len(text.shorten(clean, width)) <= width
    assert cell_len(text.shorten_middle(clean, width)) <= width


@given(parts=st.lists(st.text("ab目 é", max_size=8), max_size=6), column=st.integers(0, 30))
def test_a_line_has_exactly_the_requested_width(parts: list[str], column: int) -> None:
    line = Line(*((part, "text") for part in parts)).to(column)
    assert line.width == column == cell_len(line.text)


def test_flush_right_text_is_left_out_without_room() -> None:
    assert Line(("left", "text")).right(Line(("right", "text")), 12).text == "left   right"
    assert Line(("left", "text")).right(Line(("right", "text")), 9).text == "left     "


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "braille"),
        ({"LANG": "C"}, "ascii"),
        # Python sets LC_CTYPE by itself under LANG=C.
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, "ascii"),
        ({"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}, "ascii"),
        ({"LANG": "de_DE.ISO-8859-1"}, "ascii"),
        ({"LANG": "C.UTF-8"}, "braille"),
        ({"LANG": "en_US.utf8", "TERM": "linux"}, "block"),
    ],
)
def test_the_locale_decides_the_symbols(environment: dict[str, str], name: str) -> None:
    assert for_terminal(environment).name == name


def test_our_own_signs_have_an_ascii_form() -> None:
    line = Line(("2.4x ± 1 % ", "strong"), ("–  58 °C  蚂蚁", "dim")).in_ascii()
    assert line.text == "2.4x +- 1 % -  58 C  蚂蚁"
    assert line.width == cell_len(line.text)


def test_a_word_longer_than_a_line_is_broken_and_not_cut() -> None:
    assert text.wrap("record /tmp/a-very-long-path is gone", 12) == ["record", "/tmp/a-very-", "long-path", "is gone"]
    assert text.wrap("数据集数据集", 5) == ["数据", "集数", "据集"]
    assert text.wrap("", 5) == [""]


def test_a_short_moment_of_another_year_has_its_year() -> None:
    assert text.short_moment(START) == "06-15 15:06"
    assert text.short_moment(START - 400 * 24 * 3600) == "2024-05-11"
