"""The buyer's table: how many GPUs each size of an OSS accelerator feeds, by sample format.

The GPUs are emulated (see `emulation`), or those of a run, which use as many samples/s as it trained on while it had
data.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import StrEnum
from ossconsole.dataset.crop import EVAL_MARGIN
from ossconsole.dataset.formats import SampleFormat, sample_bytes
from ossconsole.storage.accelerator import CNY_PER_GB_MONTH, Accelerator
from ossconsole.telemetry.format_gain import JPEG_BYTES
from ossconsole.telemetry.measure import REQUESTS_PER_S, Measurement
from ossconsole.telemetry.page import Section, Table, Text
from ossconsole.training.bench.workloads import MIN_AU, Workload
from ossconsole.training.data import USUAL_SIZE

_SIZES_GB = (1024, 2048, 4096, 8192, 16_384)
_JPEG_SIDE = 256  # px: the short side of the JPEGs that JPEG_BYTES is the mean of


class Origin(StrEnum):
    """Where a figure of the table comes from."""

    MEASURED = "measured"
    DOCUMENTED = "documented"
    EXTRAPOLATED = "extrapolated"


class Feed(msgspec.Struct, frozen=True):
    """The accelerators that a size feeds in one sample format. `or_more` where the host was the limit, not the size."""

    format: str
    accelerators: int
    origin: Origin
    or_more: bool = False


class SizeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One size of an OSS accelerator: its documented MB/s, its estimated price, and what it feeds by format."""

    quota_gb: int
    mb_per_s: float
    cny_per_month: float
    feeds: tuple[Feed, ...]


class BuyersTable(msgspec.Struct, frozen=True, kw_only=True):
    """The table. `sample_bytes` has the mean bytes of a sample by format; `notes` say what its labels mean."""

    workload: str
    rows: tuple[SizeRow, ...]
    sample_bytes: dict[str, float]
    notes: tuple[str, ...]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured through an accelerator of `quota_gb` GB; `bytes_per_s` is the rate where it was the limit.

    `bytes_per_s` is None where the host was the limit, or no number of accelerators failed.
    """

    quota_gb: int
    accelerators: int
    bytes_per_s: float | None
    simulated: bool


class DatasetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The dataset that was read: its format, the mean bytes of its samples, the side of training images in pixels."""

    format: str
    bytes_per_sample: float
    side: int
    sharded: bool


def run_buyers(measurement: Measurement) -> list[Section]:
    """The table for the GPUs of a run, as a section of its report; none where their rate is not known."""
    run = measurement.run
    window = measurement.figures(EndpointKind.ACCELERATED)
    rate, wait = window.samples_per_s, window.wait_fraction
    through_accelerator = rate is not None
    if rate is None:
        rate, wait = measurement.samples_per_s, measurement.wait_fraction
    if run is None or not run.sample_format or not rate or wait is None or wait >= 1 or not measurement.samples:
        return []
    own = rate / (1 - wait) / run.world
    batch_size = measurement.settings.batch_size or 1
    workload = Workload("this run", batch_size, batch_size / own)
    facts = DatasetFacts(
        format=run.sample_format,
        bytes_per_sample=measurement.bytes / measurement.samples,
        side=int(run.settings.get("image_size") or USUAL_SIZE),
        sharded=run.stored_as == "shards",
    )
    measured = None
    if through_accelerator and (ceiling := measurement.ceiling) is not None:
        fed = min(run.world, int(rate / (MIN_AU * own)))
        # The readers of the run may have been its limit.
        measured = Measured(quota_gb=ceiling.quota_gb, accelerators=fed, bytes_per_s=None, simulated=run.simulated)
    title = f"Devices like this run's ({own:,.0f} samples/s each, without waiting) that an OSS accelerator feeds"
    return [buyers_section(buyers_table(workload, facts, measured), title)]


def buyers_table(workload: Workload, dataset: DatasetFacts, measured: Measured | None) -> BuyersTable:
    """The table for a workload; `measured` is None where the size of the accelerator is unknown."""
    sizes = _bytes_by_format(dataset)
    quotas = sorted({*_SIZES_GB, *([measured.quota_gb] if measured is not None else [])})
    return BuyersTable(
        workload=workload.name,
        rows=tuple(_row(quota, workload, dataset, sizes, measured) for quota in quotas),
        sample_bytes=sizes,
        notes=_notes(dataset, measured),
    )


def _bytes_by_format(dataset: DatasetFacts) -> dict[str, float]:
    side = dataset.side
    sizes = {
        str(SampleFormat.IMAGE_JPEG): JPEG_BYTES * (side * EVAL_MARGIN / _JPEG_SIDE) ** 2,
        str(SampleFormat.IMAGE_U8): float(sample_bytes(SampleFormat.IMAGE_U8, side, side)),
        str(SampleFormat.TENSOR_F32): float(sample_bytes(SampleFormat.TENSOR_F32, side, side)),
    }
    return {**sizes, dataset.format: dataset.bytes_per_sample}


def _row(
    quota: int, workload: Workload, dataset: DatasetFacts, sizes: dict[str, float], measured: Measured | None
) -> SizeRow:
    documented = Accelerator(zone="", quota_gb=quota).peak_mb_per_s
    feeds = []
    for name, size in sizes.items():
        own = name == dataset.format
        if own and measured is not None and quota == measured.quota_gb:
            feeds.append(Feed(name, measured.accelerators, Origin.MEASURED, measured.bytes_per_s is None))
            continue
        rate, origin = documented * 1e6, Origin.DOCUMENTED
        if own and measured is not None and measured.bytes_per_s is not None and not measured.simulated:
            peak = Accelerator(zone="", quota_gb=measured.quota_gb).peak_mb_per_s * 1e6
            rate, origin = rate * min(1.0, measured.bytes_per_s / peak), Origin.EXTRAPOLATED
        elif name == SampleFormat.IMAGE_JPEG and not own:
            origin = Origin.EXTRAPOLATED  # the bytes of a sample are an estimate
        feeds.append(Feed(name, _fed(workload, size, rate, requests=not dataset.sharded), origin))
    return SizeRow(quota_gb=quota, mb_per_s=documented, cny_per_month=quota * CNY_PER_GB_MONTH, feeds=tuple(feeds))


def _fed(workload: Workload, size: float, bytes_per_s: float, *, requests: bool) -> int:
    """The accelerators that reach the least AU, by bytes and, for single objects, by requests per second."""
    samples_per_s = bytes_per_s / size
    if requests:
        samples_per_s = min(samples_per_s, REQUESTS_PER_S)
    return int(samples_per_s / (MIN_AU * workload.samples_per_s))


def _notes(dataset: DatasetFacts, measured: Measured | None) -> tuple[str, ...]:
    limits = "300 MB/s, or 300 MB/s per TB above 1 TB"
    if not dataset.sharded:
        limits += f", and {REQUESTS_PER_S:,} requests/s of an account, one for each sample"
    notes = [
        f"documented: from {limits}; an accelerator is fed where its AU reaches {MIN_AU * 100:.0f} %.",
        "extrapolated: an estimated size of JPEGs, or the measured share of the documented rate at other sizes.",
        f"Cost: an estimate from the list price in Beijing, CNY {CNY_PER_GB_MONTH} per GB and month.",
    ]
    if measured is None:
        return ("measured: nothing, the accelerator's size or its rate is not known.", *notes)
    if measured.bytes_per_s is None:
        notes.insert(0, "+: at least; this machine, its readers, or what was tried was the limit.")
    where = "here, in a simulation on this machine: it says nothing about the service" if measured.simulated else "here"
    return (f"measured: {where}.", *notes)


def sized(quota_gb: int) -> str:
    """The size of an accelerator as text: whole TB from 1 TB on."""
    return f"{quota_gb / 1024:g} TB" if quota_gb >= _SIZES_GB[0] else f"{quota_gb} GB"


def origins(rows: Sequence[SizeRow]) -> set[Origin]:
    """The labels that a table uses."""
    return {feed.origin for row in rows for feed in row.feeds}


def buyers_section(table: BuyersTable, title: str = "") -> Section:
    """The table as a section of a report; its title names the workload where none is given."""
    header = ("size", "MB/s", *table.sample_bytes, "CNY/month (estimated)")
    rows = [
        (
            sized(row.quota_gb),
            f"{row.mb_per_s:,.0f}",
            *(f"{feed.accelerators:,}{'+' if feed.or_more else ''} {feed.origin}" for feed in row.feeds),
            f"{row.cny_per_month:,.0f}",
        )
        for row in table.rows
    ]
    sizes = ", ".join(f"{name} {size / 1e3:,.1f} KB" for name, size in table.sample_bytes.items())
    notes = Text([f"Bytes of a sample: {sizes}.", *table.notes])
    title = title or f"Accelerators of {table.workload} that an OSS accelerator feeds"
    return Section(title, [Table(header, rows), notes])
