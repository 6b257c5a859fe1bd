"""The ceiling that was bought: which share of an accelerator's documented rate is used, and of OSS's requests."""

from __future__ import annotations

import msgspec

REQUESTS_PER_S = 10_000
"""Documented for each account, over all its buckets of a region."""

_NEAR = 0.8  # share of a ceiling from which on it is what limits
_FIRST_TB_GB = 1024  # a smaller accelerator has the rate of this one


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """What was used of what an accelerator of `quota_gb` GB gives by its documentation, 300 MB/s per TB.

    `used` is the share of it, 0 to 1. Requests are those for samples, one for each, at least; None where samples are
    read from shards.
    """

    quota_gb: int
    peak_bytes_per_s: float
    bytes_per_s: float
    requests_per_s: float | None = None

    @property
    def used(self) -> float:
        return self.bytes_per_s / self.peak_bytes_per_s

    @property
    def requests_used(self) -> float | None:
        """Share of the documented requests per second of an account, 0 to 1."""
        return None if self.requests_per_s is None else self.requests_per_s / REQUESTS_PER_S

    @property
    def near(self) -> bool:
        return self.used >= _NEAR

    @property
    def short(self) -> str:
        """The share of the rate; where that is nearly used up, what would help."""
        size = f"{self.quota_gb / 1024:g} TB" if self.quota_gb >= _FIRST_TB_GB else f"{self.quota_gb} GB"
        text = f"{self.used:.0%} of what {size} gives ({self.peak_bytes_per_s / 1e6:,.0f} MB/s)".replace("%", " %", 1)
        if self.near:
            larger = "a larger one" if self.quota_gb >= _FIRST_TB_GB else "one larger than 1 TB"
            text += f": {larger} would help"
        return text

    @property
    def words(self) -> str:
        """Both shares."""
        if self.requests_per_s is None:
            return self.short
        return f"{self.short}; {self.requests_per_s:,.0f} of {REQUESTS_PER_S:,} requests/s of the account"

    def report(self) -> CeilingReport:
        """What `--json` holds of it."""
        return CeilingReport(
            quota_gb=self.quota_gb,
            peak_bytes_per_s=self.peak_bytes_per_s,
            bytes_per_s=self.bytes_per_s,
            used=self.used,
            requests_per_s=self.requests_per_s,
            requests_used=self.requests_used,
            words=self.words,
        )


class CeilingReport(msgspec.Struct, frozen=True, kw_only=True):
    """A ceiling as JSON; see Ceiling."""

    quota_gb: int
    peak_bytes_per_s: float
    bytes_per_s: float
    used: float
    requests_per_s: float | None
    requests_used: float | None
    words: str
