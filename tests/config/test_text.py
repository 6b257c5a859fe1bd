from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ossconsole
from ossconsole.config.text import counted, safe_text, signal_name
from tests.foreign import CLIPBOARD

_NOUNS = re.compile(
    r" (epochs|steps|objects|workers|samples|folders|files|classes|tensors|uploads|retries|jobs|parts|batches|"
    r"processes|rounds|setups|visits|checkpoints|events)\b(?!/)"
)


@pytest.mark.parametrize(
    ("count", "noun", "plural", "words"),
    [
        (0, "epoch", "", "0 epochs"),
        (1, "epoch", "", "1 epoch"),
        (2, "epoch", "", "2 epochs"),
        (12_000, "object", "", "12,000 objects"),
        (1, "class", "classes", "1 class"),
        (3, "class", "classes", "3 classes"),
        ("1+", "object", "", "1+ objects"),
        ("1", "sample/s", "samples/s", "1 sample/s"),
        ("0.4", "sample/s", "samples/s", "0.4 samples/s"),
    ],
)
def test_counted(count: int | str, noun: str, plural: str, words: str) -> None:
    assert counted(count, noun, plural) == words


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("猫❤️", "猫❤\\ufe0f"),
        ("👍🏽.jpg", "👍\\U0001f3fd.jpg"),
        ("🇩🇪", "\\U0001f1e9\\U0001f1ea"),
        ("👨‍👧", "👨\\u200d👧"),
        ("猫 naïve", "猫 naïve"),
    ],
)
def test_what_terminals_draw_in_different_widths_is_spelled_out(name: str, shown: str) -> None:
    assert safe_text(name) == shown


def test_safe_text_done_twice_is_safe_text() -> None:
    once = safe_text(CLIPBOARD)
    assert once == r"\x1b]52;c;ZXZpbA==\x07"
    assert safe_text(once) == once


def counted_by_hand(tree: ast.AST) -> Iterator[str]:
    """The f-strings in which a plural follows a figure that may be 1."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            if not isinstance(value, ast.FormattedValue) or not isinstance(text, ast.Constant):
                continue
            figure = ast.unparse(value.value)
            constant = figure.rpartition(".")[2].isupper() or "." in (
                ast.unparse(value.format_spec or ast.Constant(""))
            )
            if _NOUNS.match(str(text.value)) and not constant and not figure.startswith("counted("):
                yield ast.unparse(node)


def test_counted_things_get_the_right_number_everywhere() -> None:
    package = Path(ossconsole.__file__).parent
    found = {
        f"{path.relative_to(package)}: {words}"
        for path in package.rglob("*.py")
        if "sandbox" not in path.parts
        for words in counted_by_hand(ast.parse(path.read_text()))
    }
    assert not found


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (34, "SIGRTMIN"), (35, "signal 35")])
def test_every_signal_has_a_name(number: int, name: str) -> None:
    assert signal_name(number) == name
