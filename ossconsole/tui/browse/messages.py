"""What threads tell the Browse screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message

from ossconsole.tui.browse.detail import Detail

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore


class Connected(Message):
    """The bucket may be listed; `changed` tells that what was listed of it before is out of date."""

    def __init__(self, store: ObjectStore, *, changed: bool) -> None:
        super().__init__()
        self.store = store
        self.changed = changed


class Changed(Message):
    """The listing, or the view of it, has more than what shows."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Changed)


class DetailRead(Message):
    """Something became known of an object or a folder."""

    def __init__(self, detail: Detail) -> None:
        super().__init__()
        self.detail = detail
