"""`ossconsole doctor`: every check, side by side, each with its own limit."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import click
import msgspec

from ossconsole.cli.checks import dataset, gpu, machine, setup, terminal
from ossconsole.cli.options import OpenTarget, Target, profile_options
from ossconsole.config.checks import Check, CheckJob, CheckStatus, run_checks, warn
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.paths import state_dir
from ossconsole.config.profile import Profile
from ossconsole.training.settings import TrainSettings

LIMIT_S = 8.5
_PROBE_LIMIT_S = 6.5
_MARKS = {CheckStatus.OK: "✓ ok  ", CheckStatus.WARN: "! warn", CheckStatus.FAIL: "✗ fail"}
_COLOURS = {CheckStatus.OK: "green", CheckStatus.WARN: "yellow", CheckStatus.FAIL: "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: checks [{name, status, detail, remedy}].")
@profile_options
def doctor(as_json: bool, target: Target) -> None:
    """Check this machine, the settings, and both endpoints; exit 1 when a check fails.

    To try what the key may do, a small object is written below the checkpoint prefix and deleted again.
    """
    checks: list[Check] = []
    for found in examine(target):
        checks.extend(found)
        if not as_json:
            _show(found)
    if as_json:
        click.echo(msgspec.json.encode({"checks": checks}).decode())
    if any(check.status is CheckStatus.FAIL for check in checks):
        sys.exit(1)


def examine(target: Target) -> Iterator[Sequence[Check]]:
    """All checks, in the order in which they read best; they run at once, within LIMIT_S in all.

    The embedded sandbox is started, and its sample dataset made, before: on a fresh machine that takes longer.
    """
    try:
        resolution = target.resolve()
    except ConsoleError as error:
        yield from run_checks(machine_jobs(None))
        yield [setup.failed("settings", error)]
        return
    profile = None if resolution is None else resolution.profile
    bucket = CheckJob(("settings", "credentials", "bucket"), lambda: bucket_checks(target, profile), LIMIT_S)
    with ExitStack() as stack:
        if profile is None:
            _make_sandbox_ready(target, stack)
        yield from run_checks([*machine_jobs(profile), bucket])


def _make_sandbox_ready(target: Target, stack: ExitStack) -> None:
    """Keeps the sandbox running until `stack` is closed; why it cannot be used is for the checks to find."""
    from ossconsole.cli.sample import fill_sandbox

    try:
        fill_sandbox(stack.enter_context(target.open(say=lambda _text: None)))
    except ConsoleError as error:
        click.echo(f"The sandbox's sample dataset was not made: {error}", err=True)


def machine_jobs(profile: Profile | None) -> list[CheckJob]:
    """The checks that need no bucket."""
    buffers = TrainSettings().prefetch_mb << 20
    singles: dict[str, Callable[[], Check]] = {
        "python": machine.python_check,
        "glibc": machine.glibc_check,
        "userfaultfd": machine.userfaultfd_check,
        "shared memory": lambda: machine.shared_memory_check(buffers),
        "open files": machine.open_files_check,
        "disk": lambda: machine.disk_check(state_dir()),
        "terminal": terminal.terminal_check,
        "connector config": setup.connector_config_check,
        "instance": lambda: setup.instance_check(profile),
    }
    jobs = [CheckJob((name,), functools.partial(_alone, look), LIMIT_S) for name, look in singles.items()]
    jobs.append(CheckJob(gpu.TORCH_NAMES, lambda: gpu.torch_checks(LIMIT_S - 0.5), LIMIT_S))
    jobs.append(CheckJob(gpu.GPU_NAMES, gpu.gpu_checks, LIMIT_S))
    return jobs


def bucket_checks(target: Target, profile: Profile | None) -> list[Check]:
    """Settings, credentials, both endpoints, and what is in the bucket; `profile` None is the sandbox."""
    found = [] if profile is None else [setup.settings_check(profile)]
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(target.open())
            found = found or [setup.settings_check(opened.profile)]
            found.append(setup.credentials_check(opened.credentials))
        except ConsoleError as error:
            return [*found, setup.failed("sandbox" if profile is None else "credentials", error)]
        return [*found, *endpoint_checks(opened)]


def endpoint_checks(opened: OpenTarget) -> list[Check]:
    """The probe's checks, and the dataset's and the accelerator's where the endpoint answers."""
    from ossconsole.storage.checks import probe_checks
    from ossconsole.storage.probe import probe

    with ThreadPoolExecutor(1, thread_name_prefix="doctor") as pool:
        content = pool.submit(_content_checks, opened)
        report = probe(opened.profile, opened.credentials, limit_s=_PROBE_LIMIT_S)
        return [*probe_checks(opened.profile, report), *content.result()]


def _content_checks(opened: OpenTarget) -> list[Check]:
    from ossconsole.storage.checks import accelerator_check
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.errors import StorageError

    def store(kind: EndpointKind) -> ObjectStore:
        return ObjectStore(opened.profile, opened.credentials, kind, timeout_s=4.0, attempts=1)

    size: int | None = None
    try:
        check, size = dataset.dataset_check(store(EndpointKind.STANDARD))
    except StorageError as error:
        check = warn("dataset", f"Not looked at: {error.message}", error.remedy)
    if opened.profile.accelerated_endpoint is None:
        return [check]
    return [check, accelerator_check(store(EndpointKind.ACCELERATED), size)]


def _alone(look: Callable[[], Check]) -> Sequence[Check]:
    return [look()]


def _show(checks: Sequence[Check]) -> None:
    for check in checks:
        mark = click.style(_MARKS[check.status], fg=_COLOURS[check.status])
        click.echo(f"{mark}  {check.name:<22}{check.detail}")
        if check.remedy:
            click.echo(f"{'':10}{'':<20}→ {check.remedy}")
