"""What happens to a process that does not lead, on its way to the record."""

from __future__ import annotations

from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event
from ossconsole.training.context import RunContext
from ossconsole.training.place import Place
from ossconsole.training.ranks import Ranks


class News:
    """Warnings and errors of this process, until the one that leads has heard them; its own it tells at once."""

    def __init__(self, context: RunContext, place: Place) -> None:
        self._context = context
        self._kept: list[Event] = []
        if not place.leads:
            context.hand_on = self._keep

    def __len__(self) -> int:
        return len(self._kept)

    def exchange(self, ranks: Ranks) -> None:
        """Call in all processes: what they have kept goes on the record."""
        kept, self._kept = self._kept, []
        heard = ranks.share([events.encode(event) for event in kept])
        if not ranks.place.leads:
            return
        for rank, lines in enumerate(heard):
            for event in map(events.decode, lines):
                if isinstance(event, events.WarningEvent | events.ErrorEvent):
                    self._context.warn(f"Rank {rank}: {event.message}", event.remedy)

    def _keep(self, event: Event) -> None:
        if isinstance(event, events.WarningEvent | events.ErrorEvent):
            self._kept.append(event)
