"""`ossconsole warm`: reads a dataset once through the accelerated endpoint, so that the first epoch is a warm one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from ossconsole.cli.follow import emit, exit_code, finish, report_failures
from ossconsole.cli.ls import folder_prefix, key_prefix
from ossconsole.cli.options import FiniteRange, Target, json_lines_option, profile_options, reads_only
from ossconsole.cli.output import say, say_json
from ossconsole.config.endpoints import EndpointKind

if TYPE_CHECKING:
    from ossconsole.storage.jobs.warm import WarmPlan, WarmUp

_SHOWN = 10


@click.command(short_help="Fill the accelerator's cache: read the dataset once.")
@click.option(
    "--prefix",
    metavar="PREFIX",
    help="Read this folder, or every object whose key begins with PREFIX, not the dataset.",
)
@click.option("--bandwidth", type=FiniteRange(0), default=0.0, metavar="MB/S", help="Limit of the reading; 0 = none.")
@click.option("--parallelism", type=click.IntRange(1, 64), default=32, show_default=True, help="Parallel reads.")
@click.option("--again", is_flag=True, help="Also read what an earlier warm-up has read.")
@click.option("--dry-run", is_flag=True, help="Show what would be read, and whether it fits, without reading.")
@json_lines_option
@profile_options
@reads_only
def warm(
    *,
    target: Target,
    prefix: str | None,
    bandwidth: float,
    parallelism: int,
    again: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Fill the OSS accelerator's cache: read the dataset once through the accelerated endpoint.

    The samples of the dataset's manifest are read, or its shards. It says beforehand whether they fit the accelerator;
    what does not fit, or lies outside the accelerated paths, is not read. Run the same command to resume after an
    interruption: what was read is skipped.
    """
    from ossconsole.cli.sandbox import fill_sandbox
    from ossconsole.dataset.warm import dataset_source, listed_source
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.jobs.warm import WarmUp, plan_warm

    cap = bandwidth * 1e6 or None
    with target.open() as opened:
        accelerated = ObjectStore(opened.profile, opened.credentials, EndpointKind.ACCELERATED, pool_size=parallelism)
        standard = ObjectStore(opened.profile, opened.credentials)
        if prefix is None:
            fill_sandbox(opened)
            source = dataset_source(standard, opened.profile.dataset_prefix)
        else:
            source = listed_source(standard, folder_prefix(standard, key_prefix(prefix, opened.profile.bucket)))
        plan = plan_warm(source, accelerated, again=again and not dry_run)
        _show_plan(plan, cap, as_json=as_json)
        if dry_run:
            return 0
        job = WarmUp(accelerated, plan, bandwidth=cap, threads=parallelism)
        signalled = finish(job, "warming up", as_json=as_json)
    return _end(job, signalled, as_json=as_json)


def _show_plan(plan: WarmPlan, bandwidth: float | None, *, as_json: bool) -> None:
    if not as_json:
        for line in plan.lines(bandwidth):
            say(line)
        return
    fields = msgspec.structs.asdict(plan)
    accelerator = plan.accelerator
    quota_gb, zone = (accelerator.quota_gb, accelerator.zone) if accelerator else (None, None)
    emit(
        "plan",
        **{name: value for name, value in fields.items() if isinstance(value, int)},
        source=plan.source.text,
        quota_gb=quota_gb,
        zone=zone,
        fits=None if accelerator is None else not plan.beyond,
        seconds=plan.seconds(bandwidth),
        unknown=plan.unknown,
    )


def _end(job: WarmUp, signalled: list[int], *, as_json: bool) -> int:
    from ossconsole.storage.jobs.job import JobState

    done, plan = job.progress(), job.plan
    rate = done.bytes_done / done.seconds if done.seconds > 0 else 0.0
    report_failures(job.failures, as_json=as_json, at_most=_SHOWN)
    if as_json:
        say_json(
            {
                "event": "summary",
                "read": done.items_done,
                "skipped": plan.warmed,
                "failed": done.items_failed,
                "not_read": plan.beyond + plan.outside,
                "bytes": done.bytes_done,
                "seconds": round(done.seconds, 3),
                "mb_per_s": round(rate / 1e6, 3),
                "cancelled": job.state is JobState.CANCELLED,
            }
        )
    else:
        say(
            f"{str(job.state).capitalize()}: {done.items_done:,} read, {plan.warmed:,} skipped, "
            f"{done.items_failed:,} failed; {done.bytes_done / 1e6:,.1f} MB in {done.seconds:.1f} s, "
            f"{rate / 1e6:,.1f} MB/s."
        )
    return exit_code(signalled, cancelled=job.state is JobState.CANCELLED, failed=bool(job.failures))
