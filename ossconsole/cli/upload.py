"""`ossconsole upload`: prepares images and uploads them as a dataset, with the engine of the Upload screen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ossconsole.cli.follow import (
    POLL_S,
    REPORT_EVERY_S,
    cancelling_on_signals,
    emit,
    exit_code,
    finish,
    log_progress,
    progress_bar,
    report_failures,
    time_left,
)
from ossconsole.cli.options import (
    FiniteRange,
    OpenTarget,
    Target,
    json_lines_option,
    label_options,
    profile_options,
    readonly_option,
)
from ossconsole.cli.output import say, say_json
from ossconsole.cli.unattended import CommandWork
from ossconsole.config.errors import SettingsError
from ossconsole.config.text import counted, safe_text
from ossconsole.dataset.formats import SampleFormat
from ossconsole.training.settings import MAX_SEED

if TYPE_CHECKING:
    from rich.progress import Progress

    from ossconsole.dataset.manifest import Unused
    from ossconsole.dataset.upload.job import UploadJob, UploadSettings, UploadSummary
    from ossconsole.dataset.upload.plan import UploadPlan
    from ossconsole.dataset.upload.progress import UploadProgress
    from ossconsole.storage.jobs.job import Failure, Job

_SHOWN = 10


@click.command()
@click.argument("source", metavar="SRC", type=click.Path())
@click.option(
    "--format",
    "format_name",
    type=click.Choice([str(kind) for kind in SampleFormat]),
    default=str(SampleFormat.IMAGE_JPEG),
    show_default=True,
    help="Format of the stored samples; tensor-f32 is the tutorial's.",
)
@click.option(
    "--size",
    type=click.IntRange(1),
    help="image-jpeg: the short side in px, 256 by default; smaller images are not enlarged. "
    "Other formats: the side of the stored square, 224 by default.",
)
@click.option("--quality", type=click.IntRange(1, 100), help="image-jpeg only: the JPEG quality, 90 by default.")
@click.option("--originals", is_flag=True, help="image-jpeg only: store the image files as they are.")
@click.option("--keep-ratio", is_flag=True, help="image-u8 only: --size is the short side, without cropping.")
@click.option(
    "--seed",
    type=click.IntRange(-MAX_SEED, MAX_SEED),
    default=0,
    show_default=True,
    help="Seed of tensor-f32's random crops and flips.",
)
@click.option("--workers", type=click.IntRange(0, 256), default=0, help="Preparation processes; 0 = one per core.")
@click.option("--parallelism", type=click.IntRange(1, 64), default=32, show_default=True, help="Parallel uploads.")
@click.option(
    "--bandwidth",
    type=FiniteRange(0),
    default=0.0,
    metavar="MB/S",
    help="Limit of the upload bandwidth; 0 = none.",
)
@click.option(
    "--val-split",
    type=FiniteRange(0, 1, max_open=True),
    default=0.0,
    metavar="SHARE",
    help="Store this share of each class as val/ when SRC has no validation images; --seed decides which.",
)
@label_options
@click.option(
    "--names", default="", metavar="ENCODING", help="Encoding of names in an archive that are not UTF-8, like cp932."
)
@click.option("--prune", is_flag=True, help="Delete samples whose images are no longer in SRC.")
@click.option(
    "--shards",
    "per_shard",
    type=click.IntRange(0, 10**9),
    default=0,
    metavar="N",
    help="Pack N samples into each tar shard; 0 = one object per sample.",
)
@click.option("--plain", is_flag=True, help="Upload SRC unchanged, any file or folder; needs --to.")
@click.option("--to", "to", metavar="PREFIX", help="With --plain: destination prefix in the bucket.")
@click.option("--dry-run", is_flag=True, help="Show the plan without uploading.")
@json_lines_option
@profile_options
@readonly_option
def upload(
    *,
    target: Target,
    source: str,
    format_name: str,
    bandwidth: float,
    size: int | None,
    quality: int | None,
    plain: bool,
    to: str | None,
    dry_run: bool,
    as_json: bool,
    readonly: bool,
    **options: Any,
) -> int:
    """Prepare SRC/{train,val} and upload it as a dataset.

    SRC is a folder or an archive (.tar, .tar.gz, .zip) with train/<class>/ and val/<class>/ at any depth, with class
    folders alone, or with the tutorial's flat val/ and ILSVRC2012_val_labels.json (or Kaggle's LOC_val_solution.csv);
    a folder of such archives; or a .csv/.tsv of path, label and split. --dry-run shows how SRC is understood. Run the
    same command to resume after an interruption: only missing or changed samples are uploaded.
    """
    from ossconsole.dataset.labels import LabelFiles
    from ossconsole.dataset.upload.job import UploadSettings

    if not source:  # a shell variable that is not set
        raise SettingsError("SRC is empty.", remedy="Give . for the current folder.")
    if readonly and not dry_run:
        raise SettingsError("--readonly disables uploads.", remedy="Leave it out, or add --dry-run.")
    if plain != (to is not None) or (plain and dry_run):
        raise SettingsError(
            "--plain and --to must be given together, and without --dry-run.", remedy="See `upload --help`."
        )
    cap = bandwidth * 1e6 or None
    if to is not None:
        with target.open() as opened:
            return _upload_plain(opened, Path(source), to, options["parallelism"], cap, as_json=as_json)
    fmt = SampleFormat(format_name)
    labels = LabelFiles(val_labels=options.pop("val_labels"), class_index=options.pop("class_index"))
    settings = UploadSettings(
        source=Path(source), format=fmt, size=size or 0, quality=quality or 0, bandwidth=cap, labels=labels, **options
    )
    settings.preprocessing.check()
    with target.open() as opened:
        if dry_run:
            return _dry_run(opened, settings, as_json=as_json)
        return _upload(opened, settings, as_json=as_json)


def _upload(opened: OpenTarget, settings: UploadSettings, *, as_json: bool) -> int:
    from ossconsole.dataset.upload.plan import create_upload
    from ossconsole.training.remote.control import ControlServer

    job = create_upload(opened.profile, opened.credentials, settings)
    with cancelling_on_signals(job) as signalled, ControlServer(CommandWork(opened.profile, own_upload=job)):
        job.start()
        (_follow_json if as_json else _follow)(job)
    summary = job.summary()
    if job.error is None or summary.uploaded or summary.skipped or summary.failed:
        (_print_json_summary if as_json else _print_summary)(summary, stopped=job.error is not None)
    if job.error is not None:
        raise job.error
    return exit_code(signalled, cancelled=summary.cancelled, failed=summary.failed > 0)


def _upload_plain(
    opened: OpenTarget, source: Path, prefix: str, threads: int, bandwidth: float | None, *, as_json: bool
) -> int:
    from ossconsole.dataset.upload.plain import PlainUpload
    from ossconsole.storage.client import ObjectStore

    store = ObjectStore(opened.profile, opened.credentials, pool_size=threads)
    job = PlainUpload(store, source, prefix, threads=threads, bandwidth=bandwidth)
    signalled = finish(job, "uploading", as_json=as_json)
    print_unused(job.unused, as_json=as_json)
    done = job.progress()
    return _end(job, signalled, (done.items_done, done.items_skipped, done.items_failed), as_json=as_json)


def _end(job: Job, signalled: list[int], counts: tuple[int, int, int], *, as_json: bool) -> int:
    from ossconsole.storage.jobs.job import JobState

    done = job.progress()
    report_failures(job.failures, as_json=as_json)
    if as_json:
        _print_last_line(*counts, done.bytes_done, done.seconds)
    else:
        uploaded, skipped, failed = counts
        say(
            f"{str(job.state).capitalize()}: {uploaded} uploaded, {skipped} skipped, {failed} failed; "
            f"{done.bytes_done / 1e6:.1f} MB in {done.seconds:.1f} s."
        )
    return exit_code(signalled, cancelled=job.state is JobState.CANCELLED, failed=bool(job.failures))


# For machines


def _follow_json(job: UploadJob) -> None:
    shown = ""
    while not job.wait(REPORT_EVERY_S):
        if job.understood != shown:
            shown = job.understood
            emit("layout", layout=shown)
        progress = msgspec.to_builtins(job.progress())
        del progress["workers"], progress["recent_failures"]
        emit("progress", **progress)


def _print_json_summary(summary: UploadSummary, *, stopped: bool) -> None:
    print_unused(summary.unused, as_json=True)
    print_cautions(summary.cautions, as_json=True)
    for note in summary.ignored_files:
        emit("skipped", path=note.path, reason=note.reason)
    for note in summary.failures:
        emit("failed", path=note.path, reason=note.reason, code=note.code, request_id=note.request_id)
    for key in summary.removed:
        emit("removed", key=key, deleted=summary.pruned)
    details = ("unchanged", "ignored", "removed_count", "retries", "unknown", "cancelled", "manifest")
    emit("details", stopped=stopped, **{name: getattr(summary, name) for name in details})
    _print_last_line(summary.uploaded, summary.skipped, summary.failed, summary.bytes, summary.seconds)


def _print_last_line(uploaded: int, skipped: int, failed: int, size: int, seconds: float) -> None:
    """Prints the summary, whose keys are documented: these and no others."""
    counts = {"uploaded": uploaded, "skipped": skipped, "failed": failed, "bytes": size}
    rate = round(uploaded / seconds, 3) if seconds > 0 else 0.0
    say_json({"event": "summary", **counts, "seconds": round(seconds, 3), "samples_per_s": rate})


# For people


def _follow(job: UploadJob) -> None:
    while not (job.understood or job.wait(POLL_S)):
        pass
    if job.understood:
        say(f"Layout: {job.understood}.")
    with progress_bar() as bar:
        if bar is not None:
            _draw(job, bar)
        else:
            log_progress(job, lambda: _log_line(job.progress()))


def _log_line(progress: UploadProgress) -> str:
    of = f" of {progress.total:,}" if progress.total_known else ""
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    return f"{progress.phase}: {counted(progress.done, 'file')}{of}{failed}, {_rate_text(progress)}"


def _draw(job: UploadJob, bar: Progress) -> None:
    task = bar.add_task("starting", total=None, rate="")
    shown: Failure | None = None
    while not job.wait(POLL_S):
        progress = job.progress()
        bar.update(
            task,
            description=str(progress.phase),
            completed=progress.done,
            total=progress.total if progress.total_known else None,
            rate=_rate_text(progress),
        )
        newest = progress.recent_failures[-1] if progress.recent_failures else None
        if newest is not None and newest is not shown:
            bar.console.print(_note_text(newest), markup=False, highlight=False)
            shown = newest


def _rate_text(progress: UploadProgress) -> str:
    if progress.waiting:
        return safe_text(progress.waiting)
    parts = [
        counted(f"{progress.samples_per_s:.0f}", "sample/s", "samples/s"),
        f"{progress.bytes_per_s / 1e6:.1f} MB/s",
    ]
    if progress.checks:
        parts.insert(0, f"{progress.files_per_s:.0f} checked/s")
    if progress.eta_s is not None:
        parts.append(time_left(progress.eta_s))
    if progress.bottleneck:
        parts.append(f"limited by {progress.bottleneck}")
    return "  ".join(parts)


def _note_text(note: Failure) -> str:
    request = f" (request id {note.request_id})" if note.request_id else ""
    return f"{safe_text(note.path)}: {safe_text(note.reason)}{request}"


def _print_summary(summary: UploadSummary, *, stopped: bool) -> None:
    """`stopped` says that an error ended the upload, which is printed after this."""
    state = "Stopped" if stopped else "Cancelled" if summary.cancelled else "Done"
    say(
        f"{state}: {summary.uploaded} uploaded, {summary.skipped} skipped "
        f"({summary.unchanged} unchanged, {summary.ignored} not used), {summary.failed} failed; "
        f"{summary.bytes / 1e6:.1f} MB in {summary.seconds:.1f} s, {summary.samples_per_s:.1f} samples/s."
    )
    print_unused(summary.unused, as_json=False)
    print_cautions(summary.cautions, as_json=False)
    _print_notes("Failed", summary.failures, summary.failed)
    if summary.removed:
        what = "deleted" if summary.pruned else "still in the dataset (--prune deletes them)"
        say(f"Missing from the source, {what}: {summary.removed_count:,}")
    if summary.unknown:
        say(f"Objects below the prefix that are not part of the dataset: {summary.unknown}")
    if summary.manifest:
        say(f"Manifest: {summary.manifest}")
    if stopped and summary.uploaded:
        say("Run the same command again to resume: what was uploaded is not sent again.")


def _print_notes(title: str, notes: tuple[Failure, ...], count: int) -> None:
    for note in notes[:_SHOWN]:
        say(f"{title}: {_note_text(note)}")
    if count > _SHOWN:
        say(f"{title}: and {count - _SHOWN} more")


def print_unused(groups: tuple[Unused, ...], *, as_json: bool) -> None:
    """Prints one line or JSON event for each group of files or objects that are not used."""
    for group in groups:
        if as_json:
            emit("not_used", **msgspec.to_builtins(group))
        else:
            say(f"Not used: {group}")


def print_cautions(groups: tuple[Unused, ...], *, as_json: bool) -> None:
    """Prints one line or JSON event for each group of names that may be a mistake."""
    for group in groups:
        if as_json:
            emit("caution", **msgspec.to_builtins(group))
        else:
            say(f"Caution: {group}")


# The plan


def _dry_run(opened: OpenTarget, settings: UploadSettings, *, as_json: bool) -> int:
    from ossconsole.dataset.upload.plan import plan_upload

    began = time.monotonic()
    plan = plan_upload(opened.profile, opened.credentials, settings)
    if as_json:
        emit("plan", **msgspec.to_builtins(plan))
        _print_last_line(0, plan.unchanged + plan.ignored, plan.lost, 0, time.monotonic() - began)
    else:
        _print_plan(plan, settings)
    return 1 if plan.lost or plan.problem else 0


def _classes(plan: UploadPlan) -> str:
    """The number of classes, and of those with samples where others only keep the order of the labels."""
    classes = counted(len(plan.classes), "class", "classes")
    return classes if plan.used_classes == len(plan.classes) else f"{plan.used_classes} of {classes}"


def _size(size: float) -> str:
    if not size:
        return "0 B"
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _cost(cny: float) -> str:
    return f"about CNY {cny:.2f}" if cny >= 0.01 or not cny else "less than CNY 0.01"


def _about(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return "less than 1 s" if seconds < 1 else f"about {minutes}:{rest:02} min" if minutes else f"about {rest} s"


def _print_plan(plan: UploadPlan, settings: UploadSettings) -> None:
    from ossconsole.dataset.manifest import VAL

    say(f"Layout: {plan.layout}.")
    splits = ", ".join(f"{count} {split}" for split, count in plan.samples.items()) or "no samples"
    say(f"{counted(plan.files, 'file')}: {splits} in {_classes(plan)}.")
    if plan.samples and VAL not in plan.samples:
        say("No validation images: a run holds out a share of each class, or add --val-split 0.1 here.")
    say(
        f"To upload: {counted(plan.to_send, 'sample')}, {_size(plan.bytes_to_send)}"
        + (" (estimated)" if plan.bytes_estimated else "")
        + f" as {settings.stored_as}"
        + (f", {_about(plan.prepare_s)} of preparation (estimated)." if plan.prepare_s is not None else ".")
    )
    if settings.bandwidth and plan.bytes_to_send:
        seconds = plan.bytes_to_send / settings.bandwidth
        say(f"The upload takes at least {seconds:.0f} s at the limit of {settings.bandwidth / 1e6:g} MB/s.")
    say(f"Unchanged: {plan.unchanged}. Not used: {plan.ignored}. Rejected: {plan.lost}.")
    if plan.removed:
        fate = "will be deleted" if settings.prune else "stay in the dataset (--prune deletes them)"
        say(f"In the dataset and not in SRC: {counted(plan.removed, 'sample')}; they {fate}.")
    say(f"Stored: {_size(plan.stored_bytes)}, {_cost(plan.cny_per_month)} per month (estimated, Standard LRS).")
    print_unused(plan.unused, as_json=False)
    print_cautions(plan.cautions, as_json=False)
    _print_notes("Rejected", plan.notes, plan.lost)
    if plan.problem:
        say(plan.problem)
