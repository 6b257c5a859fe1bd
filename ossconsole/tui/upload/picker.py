"""SourcePicker: selects the source of an upload."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import DirectoryTree, Input, OptionList, Static
from textual.widgets.option_list import Option

from ossconsole.config.files import is_folder, typed_path
from ossconsole.dataset.source.layout import ARCHIVE_AND_TABLE_SUFFIXES
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.text import safe


class _SourceTree(DirectoryTree):
    """Folders, archives and tables; hidden files are left out."""

    show_root = True
    # Emoji are two cells wide in some terminals and one in others.
    ICON_NODE, ICON_NODE_EXPANDED, ICON_FILE = "+ ", "- ", "  "

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        return [path for path in paths if not path.name.startswith(".") and (_is_source_file(path) or is_folder(path))]


def _is_source_file(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_AND_TABLE_SUFFIXES)


class SourcePicker(ConsoleModal):
    """Returns the path of a source, selected in a tree or in the recent ones, or typed; or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "accept", show=False),
        Binding("backspace", "parent", show=False),
        *(Binding(key, f"type('{text}')", show=False) for key, text in (("slash", "/"), ("tilde", "~"))),
    ]

    def __init__(self, start: Path, recent: Sequence[str]) -> None:
        super().__init__()
        self._start = start
        self._recent = recent

    def compose(self) -> ComposeResult:
        with self.frame("Source", "enter, ^s OK · tab, / edit path · backspace parent · esc cancel", id="picker"):
            yield Static("Path", classes="dim")
            yield Input(str(self._start), compact=True, id="picked", select_on_focus=False)
            if self._recent:
                yield Static("Recent", classes="dim")
                yield OptionList(*(Option(Content(safe(path))) for path in self._recent), id="recent", compact=True)
            yield _SourceTree(self._start, id="tree")

    def on_mount(self) -> None:
        """Focus the tree."""
        self.query_one("#tree").focus()

    def _on_tree_node_highlighted(self, event: DirectoryTree.NodeHighlighted[object]) -> None:
        path = getattr(event.node.data, "path", None)
        if path is not None:
            self.query_one("#picked", Input).value = str(path)

    def _on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(Path(self._recent[event.option_index]))

    def _on_directory_tree_file_selected(self, event: DirectoryTree.FileSelected) -> None:
        self.dismiss(event.path)

    def _on_input_submitted(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Return the path in the input."""
        text = self.query_one("#picked", Input).value.strip()
        if text:
            self.dismiss(typed_path(text))

    def action_type(self, text: str) -> None:
        """Edit the path: `text` begins a new one."""
        entry = self.query_one("#picked", Input)
        entry.value = text
        entry.focus()
        entry.cursor_position = len(text)

    def action_parent(self) -> None:
        """Show the parent folder."""
        tree = self.query_one("#tree", _SourceTree)
        parent = Path(tree.path).absolute().parent
        tree.path = parent
        self.query_one("#picked", Input).value = str(parent)
