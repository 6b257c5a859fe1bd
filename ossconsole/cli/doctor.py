"""`ossconsole doctor`: all checks, run simultaneously, each with its own time limit."""

from __future__ import annotations

import functools
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import click

from ossconsole.cli import checks
from ossconsole.cli.options import OpenTarget, Target, profile_options, readonly_option
from ossconsole.cli.output import say, say_json
from ossconsole.config.checks import Check, CheckJob, CheckStatus, run_checks, warn
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import config_dir, logs_dir, state_dir
from ossconsole.config.profiles import Profile

LIMIT_S = 8.5
BUCKET_LIMIT_S = 30.0  # each request has its own limit; a busy machine starts threads and imports late
TORCH_LIMIT_S = 180.0  # the first import reads it from the disk, which takes a busy machine a minute
_PROBE_LIMIT_S = 6.5
_INDENT = 30  # of the details, after mark and name
_MARKS = {CheckStatus.OK: "✓ ok  ", CheckStatus.WARN: "! warn", CheckStatus.FAIL: "✗ fail"}
_COLOURS = {CheckStatus.OK: "green", CheckStatus.WARN: "yellow", CheckStatus.FAIL: "red"}


@click.command(short_help="Check this machine, the settings, and both endpoints.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: checks [{name, status, detail, remedy}].")
@profile_options
@readonly_option
def doctor(as_json: bool, readonly: bool, target: Target) -> None:
    """Check this machine, the settings, and both endpoints; exit 1 when a check fails.

    To test the key's permissions, a small object is written below the checkpoint prefix and deleted; not with
    --readonly.
    """
    results: list[Check] = []
    for found in examine(target, writes=not readonly):
        results.extend(found)
        if not as_json:
            _show(found)
    if as_json:
        say_json({"checks": results})
    if any(check.status is CheckStatus.FAIL for check in results):
        sys.exit(1)


def examine(target: Target, *, writes: bool) -> Iterator[Sequence[Check]]:
    """All checks, run simultaneously, in a fixed order.

    Each has a time limit: LIMIT_S, or more for the bucket and torch. Checks that still run are reported on stderr.
    The embedded sandbox is started before, and its sample dataset created: on a fresh machine that takes longer.
    """
    try:
        resolution = target.resolve()
    except ConsoleError as error:
        yield from run_checks(machine_jobs(None), _say_waiting)
        yield [checks.failed("settings", error)]
        return
    profile = None if resolution is None else resolution.profile
    bucket = CheckJob(
        ("settings", "credentials", "bucket"), lambda: bucket_checks(target, profile, writes=writes), BUCKET_LIMIT_S
    )
    with ExitStack() as stack:
        if profile is None and writes:
            _prepare_sandbox(target, stack)
        yield from run_checks([*machine_jobs(profile), bucket], _say_waiting)


def _say_waiting(job: CheckJob, seconds: float) -> None:
    say(f"Waiting for {' and '.join(job.names)}: {seconds:.0f} s, at most {job.limit_s:.0f} s.", err=True)


def _prepare_sandbox(target: Target, stack: ExitStack) -> None:
    """Keeps the sandbox running until `stack` is closed; the checks report why it cannot be used."""
    from ossconsole.cli.sandbox import fill_sandbox

    try:
        fill_sandbox(stack.enter_context(target.open(say=lambda _text: None)))
    except ConsoleError as error:
        say(f"The sandbox's sample dataset was not created: {error}", err=True)


def machine_jobs(profile: Profile | None) -> list[CheckJob]:
    """The checks that need no bucket."""
    singles: dict[str, Callable[[], Check]] = {
        "python": checks.python_check,
        "glibc": checks.glibc_check,
        "userfaultfd": checks.userfaultfd_check,
        "open files": checks.open_files_check,
        "folders": checks.folders_check,
        "disk": lambda: checks.disk_check(checks.least_free(state_dir(), logs_dir(), config_dir())),
        "terminal": checks.terminal_check,
        "connector config": checks.connector_config_check,
        "instance": lambda: checks.instance_check(profile),
    }
    return [
        *(CheckJob((name,), functools.partial(_single, check), LIMIT_S) for name, check in singles.items()),
        CheckJob(checks.TORCH_NAMES, lambda: checks.torch_checks(TORCH_LIMIT_S), TORCH_LIMIT_S + 5),
        CheckJob(checks.GPU_NAMES, checks.gpu_checks, LIMIT_S),
    ]


def bucket_checks(target: Target, profile: Profile | None, *, writes: bool) -> list[Check]:
    """Settings, credentials, both endpoints, and the dataset; `profile` None is the sandbox.

    With `writes`, a small object is written to test the permissions.
    """
    found = [] if profile is None else [checks.settings_check(profile)]
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(target.open())
            found = found or [checks.settings_check(opened.profile)]
            found.append(checks.credentials_check(opened.credentials, opened.passed_over))
        except ConsoleError as error:
            if profile is None:
                return [checks.failed("sandbox", error)]
            return [*found, checks.failed("credentials", error), *unsigned_checks(profile)]
        return [*found, *endpoint_checks(opened, writes=writes)]


def unsigned_checks(profile: Profile) -> list[Check]:
    """The endpoints as far as they can be checked without credentials: name, connection, TLS."""
    from ossconsole.storage.probe.probe import probe
    from ossconsole.storage.probe.report import endpoint_checks

    return endpoint_checks(profile, probe(profile, None, limit_s=_PROBE_LIMIT_S))


def endpoint_checks(opened: OpenTarget, *, writes: bool = True) -> list[Check]:
    """The checks of the probe, the dataset and the accelerator."""
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
        check, size = checks.dataset_check(store(EndpointKind.STANDARD))
    except StorageError as error:
        check = warn("dataset", f"Not checked: {error.message}", error.remedy)
    if opened.profile.accelerated_endpoint is None:
        return [check]
    return [check, accelerator_check(store(EndpointKind.ACCELERATED), size)]


def _single(check: Callable[[], Check]) -> Sequence[Check]:
    return [check()]


def _show(results: Sequence[Check]) -> None:
    for check in results:
        first, *rest = _rows(check.detail) or [""]
        say(f"  {check.name:<22}{first}", mark=_MARKS[check.status], colour=_COLOURS[check.status])
        for row in rest:
            say(f"{'':{_INDENT}}{row}")
        for at, row in enumerate(_rows(check.remedy)):
            say(f"{'':{_INDENT - 2}}{'  ' if at else '→ '}{row}")


def _rows(text: str) -> list[str]:
    """The text wrapped to the terminal's width; in one row where stdout is redirected."""
    if not sys.stdout.isatty():
        return [text] if text else []
    room = max(_INDENT, shutil.get_terminal_size().columns - _INDENT)
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
