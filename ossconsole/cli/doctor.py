"""`ossconsole doctor`: every check, side by side, each with its own limit."""

from __future__ import annotations

import functools
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import click

from ossconsole.cli.checks import gpu, machine, setup
from ossconsole.cli.checks import machine as terminal
from ossconsole.cli.checks import setup as dataset
from ossconsole.cli.options import OpenTarget, Target, profile_options, readonly_option
from ossconsole.cli.output import say, say_json
from ossconsole.config.checks import Check, CheckJob, CheckStatus, run_checks, warn
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import config_dir, logs_dir, state_dir
from ossconsole.config.profiles import Profile

LIMIT_S = 8.5
BUCKET_LIMIT_S = 30.0  # each request has a limit of its own; a busy machine starts threads and imports late
TORCH_LIMIT_S = 180.0  # the first time it is read from the disk, and a busy machine takes a minute for it
_PROBE_LIMIT_S = 6.5
_INDENT = 30  # of the details: behind mark and name
_MARKS = {CheckStatus.OK: "✓ ok  ", CheckStatus.WARN: "! warn", CheckStatus.FAIL: "✗ fail"}
_COLOURS = {CheckStatus.OK: "green", CheckStatus.WARN: "yellow", CheckStatus.FAIL: "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: checks [{name, status, detail, remedy}].")
@profile_options
@readonly_option
def doctor(as_json: bool, readonly: bool, target: Target) -> None:
    """Check this machine, the settings, and both endpoints; exit 1 when a check fails.

    To try what the key may do, a small object is written below the checkpoint prefix and deleted again; not with
    --readonly.
    """
    checks: list[Check] = []
    for found in examine(target, writes=not readonly):
        checks.extend(found)
        if not as_json:
            _show(found)
    if as_json:
        say_json({"checks": checks})
    if any(check.status is CheckStatus.FAIL for check in checks):
        sys.exit(1)


def examine(target: Target, *, writes: bool = True) -> Iterator[Sequence[Check]]:
    """All checks, in the order in which they read best; they run at once.

    Each has its limit: LIMIT_S, or more where a bucket or torch is waited for. What is waited for is said on stderr.
    The embedded sandbox is started, and its sample dataset made, before: on a fresh machine that takes longer.
    """
    try:
        resolution = target.resolve()
    except ConsoleError as error:
        yield from run_checks(machine_jobs(None), _say_waiting)
        yield [setup.failed("settings", error)]
        return
    profile = None if resolution is None else resolution.profile
    bucket = CheckJob(
        ("settings", "credentials", "bucket"), lambda: bucket_checks(target, profile, writes=writes), BUCKET_LIMIT_S
    )
    with ExitStack() as stack:
        if profile is None and writes:
            _make_sandbox_ready(target, stack)
        yield from run_checks([*machine_jobs(profile), bucket], _say_waiting)


def _say_waiting(job: CheckJob, seconds: float) -> None:
    say(f"Waiting for {' and '.join(job.names)}: {seconds:.0f} s, at most {job.limit_s:.0f} s.", err=True)


def _make_sandbox_ready(target: Target, stack: ExitStack) -> None:
    """Keeps the sandbox running until `stack` is closed; why it cannot be used is for the checks to find."""
    from ossconsole.cli.sample import fill_sandbox

    try:
        fill_sandbox(stack.enter_context(target.open(say=lambda _text: None)))
    except ConsoleError as error:
        say(f"The sandbox's sample dataset was not made: {error}", err=True)


def machine_jobs(profile: Profile | None) -> list[CheckJob]:
    """The checks that need no bucket."""
    singles: dict[str, Callable[[], Check]] = {
        "python": machine.python_check,
        "glibc": machine.glibc_check,
        "userfaultfd": machine.userfaultfd_check,
        "open files": machine.open_files_check,
        "folders": machine.folders_check,
        "disk": lambda: machine.disk_check(machine.fullest(state_dir(), logs_dir(), config_dir())),
        "terminal": terminal.terminal_check,
        "connector config": setup.connector_config_check,
        "instance": lambda: setup.instance_check(profile),
    }
    jobs = [CheckJob((name,), functools.partial(_alone, look), LIMIT_S) for name, look in singles.items()]
    jobs.append(CheckJob(gpu.TORCH_NAMES, lambda: gpu.torch_checks(TORCH_LIMIT_S), TORCH_LIMIT_S + 5))
    jobs.append(CheckJob(gpu.GPU_NAMES, gpu.gpu_checks, LIMIT_S))
    return jobs


def bucket_checks(target: Target, profile: Profile | None, *, writes: bool = True) -> list[Check]:
    """Settings, credentials, both endpoints, and what is in the bucket; `profile` None is the sandbox.

    `writes` tells whether a small object may be written to try the permissions.
    """
    found = [] if profile is None else [setup.settings_check(profile)]
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(target.open())
            found = found or [setup.settings_check(opened.profile)]
            found.append(setup.credentials_check(opened.credentials))
        except ConsoleError as error:
            if profile is None:
                return [setup.failed("sandbox", error)]
            return [*found, setup.failed("credentials", error), *unsigned_checks(profile)]
        return [*found, *endpoint_checks(opened, writes=writes)]


def unsigned_checks(profile: Profile) -> list[Check]:
    """The endpoints as far as they can be checked without credentials: name, connection, TLS."""
    from ossconsole.storage.probe.probe import probe
    from ossconsole.storage.probe.report import endpoint_checks

    return endpoint_checks(profile, probe(profile, None, limit_s=_PROBE_LIMIT_S))


def endpoint_checks(opened: OpenTarget, *, writes: bool = True) -> list[Check]:
    """The probe's checks, and the dataset's and the accelerator's where the endpoint answers."""
    from ossconsole.storage.probe.probe import probe
    from ossconsole.storage.probe.report import probe_checks

    with ThreadPoolExecutor(1, thread_name_prefix="doctor") as pool:
        content = pool.submit(_content_checks, opened)
        report = probe(opened.profile, opened.credentials, limit_s=_PROBE_LIMIT_S, writes=writes)
        return [*probe_checks(opened.profile, report), *content.result()]


def _content_checks(opened: OpenTarget) -> list[Check]:
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.errors import StorageError
    from ossconsole.storage.probe.report import accelerator_check
    from ossconsole.storage.retry import NO_RETRY

    def store(kind: EndpointKind) -> ObjectStore:
        return ObjectStore(opened.profile, opened.credentials, kind, timeout_s=4.0, retry=NO_RETRY)

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
        first, *rest = _rows(check.detail) or [""]
        say(f"  {check.name:<22}{first}", mark=_MARKS[check.status], colour=_COLOURS[check.status])
        for row in rest:
            say(f"{'':{_INDENT}}{row}")
        for at, row in enumerate(_rows(check.remedy)):
            say(f"{'':{_INDENT - 2}}{'  ' if at else '→ '}{row}")


def _rows(text: str) -> list[str]:
    """The text in rows that fit the terminal, broken between words; in one row where it goes elsewhere."""
    if not sys.stdout.isatty():
        return [text] if text else []
    room = max(_INDENT, shutil.get_terminal_size().columns - _INDENT)
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
