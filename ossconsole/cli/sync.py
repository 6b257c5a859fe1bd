"""`ossconsole sync`: makes a prefix of the bucket like a folder of this machine, or the folder like the prefix."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ossconsole.cli.follow import emit, exit_code, finish, report_failures
from ossconsole.cli.ls import fill_if_listed, key_prefix
from ossconsole.cli.options import Target, json_lines_option, profile_options, readonly_option
from ossconsole.cli.output import say, say_json
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.text import counted, safe_text
from ossconsole.storage.jobs.sync import Direction, SyncComparison, SyncDifference, SyncEntry, SyncPlan

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.jobs.job import Job

_SHOWN = 10
_OSS = "oss://"


@click.command(short_help="Copy what is new or changed, from a folder to the bucket or back.")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--delete", is_flag=True, help="Delete what DST has and SRC does not have.")
@click.option("--dry-run", is_flag=True, help="Show the plan and every name in it without changing anything.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before files or objects are replaced or deleted.")
@click.option("--parallelism", type=click.IntRange(1, 64), default=32, show_default=True, help="Parallel transfers.")
@json_lines_option
@profile_options
@readonly_option
def sync(
    *,
    target: Target,
    source: str,
    destination: str,
    delete: bool,
    dry_run: bool,
    yes: bool,
    parallelism: int,
    as_json: bool,
    readonly: bool,
) -> int:
    """Copy what is new or changed from SRC to DST: one is a folder, the other oss://BUCKET/PREFIX.

    The plan is shown first. Files and objects of equal size are compared by time, then by MD5 or CRC64. Without
    --delete nothing is deleted. In a terminal it asks before it replaces or deletes; without one a deletion needs
    --yes. Run the same command to resume after an interruption.
    """
    from ossconsole.storage.client import ObjectStore

    direction, folder, uri = _sides(source, destination)
    if readonly and direction is Direction.UPLOAD and not dry_run:
        raise SettingsError("--readonly disables uploads.", remedy="Leave it out, or add --dry-run.")
    with target.open() as opened:
        below = key_prefix(uri, opened.profile.bucket)
        prefix = below if not below or below.endswith("/") else f"{below}/"
        if direction is Direction.DOWNLOAD:
            fill_if_listed(opened, prefix)
        store = ObjectStore(opened.profile, opened.credentials, pool_size=parallelism)
        try:
            command = _Sync(store, delete=delete, as_json=as_json, threads=parallelism)
            return command.run(folder, prefix, direction, dry_run=dry_run, yes=yes)
        finally:
            store.close()


def _sides(source: str, destination: str) -> tuple[Direction, Path, str]:
    """The direction, the folder and the URI. Raises SettingsError unless one is a URI and the other a folder."""
    if not source or not destination:  # a shell variable that is not set
        raise SettingsError("SRC or DST is empty.", remedy="Give . for the current folder.")
    if source.startswith(_OSS) == destination.startswith(_OSS):
        raise SettingsError(
            "One of SRC and DST must be a folder, the other an address such as oss://BUCKET/PREFIX.",
            remedy="See `sync --help`.",
        )
    up = destination.startswith(_OSS)
    folder, uri = (Path(source), destination) if up else (Path(destination), source)
    if up and not folder.exists():
        raise SettingsError(f"{safe_text(str(folder))} does not exist.", remedy="Give a folder.")
    if folder.exists() and not folder.is_dir():
        remedy = "For one file use `upload --plain`." if up else "Give a folder."
        raise SettingsError(f"{safe_text(str(folder))} is not a folder.", remedy=remedy)
    return (Direction.UPLOAD if up else Direction.DOWNLOAD), folder, uri


@dataclass
class _Sync:
    """One sync: its comparison, its plan and the jobs that carry it out."""

    store: ObjectStore
    delete: bool
    as_json: bool
    threads: int

    def run(self, folder: Path, prefix: str, direction: Direction, *, dry_run: bool, yes: bool) -> int:
        """Returns the exit code. Raises ConsoleError."""
        comparison = SyncComparison(self.store, folder, prefix, direction)
        signalled = finish(comparison, "comparing", as_json=self.as_json)
        plan = comparison.plan
        if plan is None:
            report_failures(comparison.failures, as_json=self.as_json, at_most=_SHOWN)
            if not comparison.failures:  # cancelled
                return self._end([], SyncPlan(direction, folder, prefix, ()), signalled, cancelled=True)
            raise ConsoleError("Both sides could not be compared, so nothing was changed.", remedy="See the failures.")
        self._show_plan(plan)
        if dry_run:
            self._show_entries(plan)
            if not self.as_json:
                say("Nothing was changed (--dry-run).")
            return self._end([], plan, [])
        self._check(plan, yes=yes)
        if not yes and self._asks(plan):
            self._show_entries(plan, only=("replace", "delete"), at_most=_SHOWN)
            if not click.confirm("Continue?", default=False, err=True):
                say("Nothing was changed.")
                return 1
        return self._carry_out(plan)

    def _carry_out(self, plan: SyncPlan) -> int:
        from ossconsole.dataset.upload.plain import transfer_jobs
        from ossconsole.storage.jobs.job import JobState

        ended: list[Job] = []
        signalled: list[int] = []
        label = "uploading" if plan.direction is Direction.UPLOAD else "downloading"
        for job in transfer_jobs(self.store, plan, replace=True, delete=self.delete, threads=self.threads):
            signalled = finish(job, label, as_json=self.as_json)
            ended.append(job)
            if job.state is not JobState.DONE:
                break
        if not ended and not self.as_json:
            say("Nothing to do.")
        return self._end(ended, plan, signalled)

    # Before

    def _check(self, plan: SyncPlan, *, yes: bool) -> None:
        """Raises ConsoleError for a deletion of everything, and for one that is not confirmed."""
        number, _ = plan.total(SyncDifference.EXTRA)
        if not (self.delete and number):
            return
        source, target = self._addresses(plan)
        what = counted(number, "file" if plan.direction is Direction.DOWNLOAD else "object")
        if number == len(plan.entries):
            raise ConsoleError(
                f"{source} is empty, so --delete would delete all of {target}: {what}.",
                remedy="Check SRC. Nothing was changed.",
            )
        if not yes and not self._asks(plan):
            raise SettingsError(
                f"--delete would delete {what} in {target}, and without a terminal it cannot ask.",
                remedy="Add --yes, or see the plan with --dry-run. Nothing was changed.",
            )

    def _asks(self, plan: SyncPlan) -> bool:
        """Whether something would be replaced or deleted, and a user can confirm it."""
        deleted = self.delete and plan.total(SyncDifference.EXTRA)[0]
        return bool(plan.total(SyncDifference.CHANGED)[0] or deleted) and not self.as_json and sys.stdin.isatty()

    def _addresses(self, plan: SyncPlan) -> tuple[str, str]:
        """The source and the target, as text."""
        pair = (safe_text(str(plan.folder)), safe_text(self.store.uri(plan.prefix)))
        return pair if plan.direction is Direction.UPLOAD else (pair[1], pair[0])

    def _show_plan(self, plan: SyncPlan) -> None:
        source, target = self._addresses(plan)
        if self.as_json:
            figures: dict[str, int] = {}
            for difference, name in _NAMES.items():
                figures[name], figures[f"{name}_bytes"] = plan.total(difference)
            sides = {"direction": plan.direction.value, "source": source, "target": target}
            emit("plan", **sides, **figures, delete=self.delete, not_files=plan.others)
            return
        say(f"From {source}")
        say(f"To   {target}")
        for difference, name in _NAMES.items():
            number, size = plan.total(difference)
            label = "only in the target" if difference is SyncDifference.EXTRA else name
            say(f"  {label:<18}  {number:>9,}  {size:>15,} B  {self._fate(difference)}")
        if plan.others:
            say(f"  not a file          {plan.others:>9,}                     left alone")

    def _fate(self, difference: SyncDifference) -> str:
        if difference is SyncDifference.EXTRA:
            return "deleted" if self.delete else "left alone without --delete"
        return {SyncDifference.NEW: "copied", SyncDifference.CHANGED: "replaced"}.get(difference, "left alone")

    def _show_entries(
        self, plan: SyncPlan, *, only: Sequence[str] = ("copy", "replace", "delete"), at_most: int | None = None
    ) -> None:
        """Prints what is done to which name, the first `at_most` of each action (None: all)."""
        affected: dict[str, list[SyncEntry]] = {
            "copy": plan.of(SyncDifference.NEW),
            "replace": plan.of(SyncDifference.CHANGED),
            "delete": plan.of(SyncDifference.EXTRA) if self.delete else [],
        }
        up = plan.direction is Direction.UPLOAD
        for word in only:
            for entry in affected[word][:at_most]:
                if self.as_json:
                    emit("change", action=word, key=entry.key, path=str(entry.path), size=entry.size)
                else:
                    say(f"{word:<7}  {entry.size:>15,}  {entry.key if up else entry.path}")
            if at_most is not None and len(affected[word]) > at_most:
                say(f"{word:<7}  and {len(affected[word]) - at_most:,} more")

    # After

    def _end(self, jobs: list[Job], plan: SyncPlan, signalled: list[int], *, cancelled: bool = False) -> int:
        """Prints the summary of the jobs that ran and returns the exit code."""
        from ossconsole.storage.jobs.actions import Delete
        from ossconsole.storage.jobs.job import JobState
        from ossconsole.storage.jobs.sync import DeleteFiles

        done = [(isinstance(job, (Delete, DeleteFiles)), job.progress()) for job in jobs]
        copied = sum(progress.items_done for deletes, progress in done if not deletes)
        deleted = sum(progress.items_done for deletes, progress in done if deletes)
        size = sum(progress.bytes_done for deletes, progress in done if not deletes)
        seconds = sum(progress.seconds for _, progress in done)
        failures = [failure for job in jobs for failure in job.failures]
        cancelled = cancelled or any(job.state is JobState.CANCELLED for job in jobs)
        unchanged, _ = plan.total(SyncDifference.SAME)
        report_failures(failures, as_json=self.as_json, at_most=_SHOWN)
        if self.as_json:
            counts = {"copied": copied, "deleted": deleted, "unchanged": unchanged, "failed": len(failures)}
            end = {"bytes": size, "seconds": round(seconds, 3), "cancelled": cancelled}
            say_json({"event": "summary", **counts, **end})
        elif jobs:
            state = "Cancelled" if cancelled else "Failed" if failures else "Done"
            figures = f"{copied:,} copied, {deleted:,} deleted, {unchanged:,} unchanged, {len(failures):,} failed"
            say(f"{state}: {figures}; {size / 1e6:,.1f} MB in {seconds:.1f} s.")
        extra = self.delete and plan.total(SyncDifference.EXTRA)[0]
        if (cancelled or failures) and extra and not any(deletes for deletes, _ in done):
            say("Nothing was deleted, because not everything was copied.", err=True)
        return exit_code(signalled, cancelled=cancelled, failed=bool(failures))


_NAMES = {
    SyncDifference.NEW: "new",
    SyncDifference.CHANGED: "changed",
    SyncDifference.SAME: "unchanged",
    SyncDifference.EXTRA: "extra",
}
