from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossconsole.config.errors import SettingsError
from ossconsole.storage.listing import ObjectRows, RowFilter, RowView, Sort, SortKey, build_view
from ossconsole.storage.objects import ListPage, ObjectSummary


def shown(view: RowView) -> list[str]:
    return [view.rows.name(int(row)) for row in view.order]


def sample_rows() -> ObjectRows:
    rows = ObjectRows("p/")
    rows.append(
        ListPage(
            [
                ObjectSummary("p/Alpha.pt", 30, 3, "Standard"),
                ObjectSummary("p/beta.PT", 10, 1, "IA"),
                ObjectSummary("p/gamma.json", 20, 2, "Archive"),
            ],
            ["p/dir/", "p/late.pt/"],
            "",
        )
    )
    return rows


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        (Sort(), ["dir/", "late.pt/", "Alpha.pt", "beta.PT", "gamma.json"]),
        (Sort(SortKey.NAME, descending=True), ["late.pt/", "dir/", "gamma.json", "beta.PT", "Alpha.pt"]),
        (Sort(SortKey.SIZE), ["dir/", "late.pt/", "beta.PT", "gamma.json", "Alpha.pt"]),
        (Sort(SortKey.SIZE, descending=True), ["dir/", "late.pt/", "Alpha.pt", "gamma.json", "beta.PT"]),
        (Sort(SortKey.MODIFIED, descending=True), ["dir/", "late.pt/", "Alpha.pt", "gamma.json", "beta.PT"]),
        (Sort(SortKey.STORAGE_CLASS), ["dir/", "late.pt/", "gamma.json", "beta.PT", "Alpha.pt"]),
    ],
)
def test_sorting_keeps_folders_first(sort: Sort, expected: list[str]) -> None:
    assert shown(build_view(sample_rows(), sort)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ALPHA", ["Alpha.pt"]),
        ("!.pt", ["dir/", "gamma.json"]),
        ("*.pt", ["late.pt/", "Alpha.pt", "beta.PT"]),
        ("!*.pt", ["dir/", "gamma.json"]),
        ("[ab]*", ["Alpha.pt", "beta.PT"]),
        ("re:^(a|g)", ["Alpha.pt", "gamma.json"]),
        ("!re:a", ["dir/"]),
    ],
)
def test_filters(text: str, expected: list[str]) -> None:
    assert shown(build_view(sample_rows(), Sort(), RowFilter(text))) == expected


def test_a_bad_expression_says_so() -> None:
    with pytest.raises(SettingsError, match="not a regular expression"):
        RowFilter("re:(")


def test_a_later_page_is_filtered_alone_and_the_older_view_stays_as_it_was() -> None:
    rows, row_filter = sample_rows(), RowFilter("a")
    seen: list[str] = []
    matches = row_filter.matches

    def counting(name: str) -> bool:
        seen.append(name)
        return matches(name)

    row_filter.matches = counting
    first = build_view(rows, Sort(), row_filter)
    before = shown(first)
    rows.append(ListPage([ObjectSummary("p/zeta", 1, 1), ObjectSummary("p/zoo", 1, 1)], [], ""))
    seen.clear()
    second = build_view(rows, Sort(), row_filter, previous=first)
    assert seen == ["zeta", "zoo"]
    assert shown(second) == [*before, "zeta"]
    assert shown(first) == before
    assert second.position(int(second.order[-1])) == len(second) - 1
    assert first.position(int(second.order[-1])) is None


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=6), st.integers(0, 1 << 40), st.integers(0, 1 << 33)),
        max_size=60,
        unique_by=lambda t: t[0],
    ),
    st.sampled_from(list(SortKey)),
    st.booleans(),
)
def test_any_rows_are_sorted_as_python_sorts_them(
    found: list[tuple[str, int, int]], key: SortKey, descending: bool
) -> None:
    found.sort()
    rows = ObjectRows("")
    for start in range(0, len(found), 7):
        rows.append(ListPage([ObjectSummary(*each) for each in found[start : start + 7]], [], "more"))
    view = build_view(rows, Sort(key, descending))
    column = {SortKey.NAME: 0, SortKey.SIZE: 1, SortKey.MODIFIED: 2}.get(key)
    expected = found if column is None else sorted(found, key=lambda each: each[column], reverse=descending)
    if column is not None and column > 0 and descending:  # ties stay in the order of names
        expected = sorted(found, key=lambda each: -int(each[column]))
    assert [rows.name(int(row)) for row in view.order] == [each[0] for each in expected]
    assert rows.total_size(view.order) == sum(each[1] for each in found)


def test_links_keep_their_type_and_sort_by_class() -> None:
    rows = ObjectRows("")
    objects = [
        ObjectSummary("a", 0, 1, "Standard", type="Symlink"),
        ObjectSummary("b", 1, 1, "IA"),
        ObjectSummary("c", 1, 1, "Standard"),
    ]
    rows.append(ListPage(objects, ["dir/"], ""))
    kinds = {rows.name(row): (rows.storage_class(row), rows.type(row)) for row in range(rows.count)}
    assert kinds == {
        "dir/": ("", ""),
        "a": ("Standard", "Symlink"),
        "b": ("IA", "Normal"),
        "c": ("Standard", "Normal"),
    }
    assert shown(build_view(rows, Sort(SortKey.STORAGE_CLASS))) == ["dir/", "b", "a", "c"]
