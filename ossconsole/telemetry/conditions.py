"""What a figure was measured under: it says nothing without."""

from __future__ import annotations

import msgspec

from ossconsole.config.text import counted

_LIBRARIES = ("ossconsole", "torch", "osstorchconnector")


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions of a comparison, as JSON too; what is not known is empty or null.

    `minutes` are those of the settled steps of both endpoints. `stored_as` is "objects" (one for each sample) or
    "shards". `warm_share` is the estimated share of the samples of the accelerated endpoint that came from its cache,
    0 to 1. `processes` train together.
    """

    pairs: int = 0
    minutes: float = 0.0
    batch_size: int = 0
    workers: int = 0
    processes: int = 1
    sample_format: str = ""
    bytes_per_sample: float | None = None
    stored_as: str = ""
    warm_share: float | None = None
    region: str = ""
    simulated: bool = False
    versions: dict[str, str] = {}

    @property
    def words(self) -> str:
        """All that is known, in one line."""
        size = None if self.bytes_per_sample is None else f"{counted(f'{self.bytes_per_sample:,.0f}', 'byte')}/sample"
        warm = None if self.warm_share is None else f"{self.warm_share * 100:.0f} % from the cache (estimated)"
        parts = (
            counted(self.pairs, "pair"),
            f"{self.minutes:.1f} min of settled steps",
            f"batch {self.batch_size}" if self.batch_size else None,
            counted(self.workers, "worker") if self.workers else None,
            counted(self.processes, "process", "processes") if self.processes > 1 else None,
            self.sample_format,
            size,
            {"objects": "one object per sample"}.get(self.stored_as, self.stored_as),
            warm,
            f"region {self.region}" if self.region else None,
            "simulated" if self.simulated else None,
            *(f"{name} {number}" for name, number in self.versions.items()),
        )
        return ", ".join(part for part in parts if part)


def installed_versions() -> dict[str, str]:
    """The versions of the programs that a figure depends on, of those that are installed."""
    from importlib.metadata import distributions

    found = {(item.name or "").lower(): item.version for name in _LIBRARIES for item in distributions(name=name)}
    return {name: found[name] for name in _LIBRARIES if name in found}
