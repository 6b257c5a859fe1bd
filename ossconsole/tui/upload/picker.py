"""SourcePicker: a source chosen from a tree, from the recent ones, or typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import DirectoryTree, Input, OptionList, Static
from textual.widgets.option_list import Option

from ossconsole.dataset.source.layout import ARCHIVE_AND_TABLE_SUFFIXES
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.text import safe


class _SourceTree(DirectoryTree):
    """Folders, archives and tables; nothing hidden."""

    show_root = True
    # Emoji are two cells wide in some terminals and one in others.
    ICON_NODE, ICON_NODE_EXPANDED, ICON_FILE = "+ ", "- ", "  "

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        return [path for path in paths if not path.name.startswith(".") and (_is_source_file(path) or path.is_dir())]


def _is_source_file(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_AND_TABLE_SUFFIXES)


class SourcePicker(ConsoleModal):
    """Returns a Path, or None where the user went back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", show=False),
        Binding("ctrl+s", "take", "Take", show=False),
        Binding("backspace", "above", "The folder above", show=False),
    ]

    def __init__(self, start: Path, recent: Sequence[str]) -> None:
        super().__init__()
        self._start = start
        self._recent = recent

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog", id="picker") as dialog:
            dialog.border_title = "Source"
            dialog.border_subtitle = "^s takes it · tab moves · backspace: folder above · esc back"
            yield Input(str(self._start), compact=True, id="picked")
            if self._recent:
                yield Static("Recent", classes="dim")
                yield OptionList(*(Option(Content(safe(path))) for path in self._recent), id="recent", compact=True)
            yield _SourceTree(self._start, id="tree")

    def on_mount(self) -> None:
        self.query_one("#tree").focus()

    def on_tree_node_highlighted(self, event: DirectoryTree.NodeHighlighted[object]) -> None:
        path = getattr(event.node.data, "path", None)
        if path is not None:
            self.query_one("#picked", Input).value = str(path)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(Path(self._recent[event.option_index]))

    def on_directory_tree_file_selected(self, event: DirectoryTree.FileSelected) -> None:
        self.dismiss(event.path)

    def on_input_submitted(self) -> None:
        self.action_take()

    def action_take(self) -> None:
        text = self.query_one("#picked", Input).value.strip()
        if text:
            self.dismiss(Path(text).expanduser())

    def action_above(self) -> None:
        tree = self.query_one("#tree", _SourceTree)
        parent = Path(tree.path).absolute().parent
        tree.path = parent
        self.query_one("#picked", Input).value = str(parent)

    def action_back(self) -> None:
        self.dismiss(None)
