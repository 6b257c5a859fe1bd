"""Saved benchmarks: their readings with everything that a figure depends on, in one file each; and their comparison."""

from __future__ import annotations

import contextlib
import platform
import re
import shlex
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import decode_json, encode_json, read_private, state_dir, write_private
from ossconsole.config.metadata import Instance, MetadataService
from ossconsole.config.text import counted
from ossconsole.storage.accelerator import find_accelerator
from ossconsole.telemetry.compare import installed_versions
from ossconsole.telemetry.host import processor_name, usable_cores
from ossconsole.training.bench.checkpoints import CheckpointReading, CheckpointSummary
from ossconsole.training.bench.difference import Difference, differences
from ossconsole.training.bench.emulation import EmulationSummary, Trial
from ossconsole.training.bench.results import BenchCase, BenchSummary, CacheState, Mode, Reading, ReadPath

if TYPE_CHECKING:
    from ossconsole.config.credentials import Credentials, CredentialSource
    from ossconsole.config.profiles import Profile

SUMMARIES = (BenchSummary, EmulationSummary, CheckpointSummary)
"""The last events of benchmarks."""

SUFFIX = ".json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REMEDY = "`ossconsole bench list` names the saved ones."


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures depend on; what is unknown is empty or 0. No secret is in it.

    `versions` are those of programs. `endpoints` are host names by endpoint. `accelerator_gb` is the size of the
    bucket's accelerator, `memory_gb` that of this machine's memory. `command` is the command line.
    """

    versions: dict[str, str] = {}
    python: str = ""
    kernel: str = ""
    processor: str = ""
    cores: int = 0
    memory_gb: float = 0.0
    instance_type: str = ""
    zone: str = ""
    region: str = ""
    nic: str = ""
    bucket: str = ""
    endpoints: dict[str, str] = {}
    accelerator_gb: int = 0
    dataset: str = ""
    mount: str = ""
    simulated: bool = False
    command: str = ""


class SavedBench(msgspec.Struct, frozen=True, kw_only=True):
    """A saved benchmark: the readings of both endpoints, or the trials of emulated accelerators, and their summary."""

    name: str
    saved: float
    provenance: Provenance
    summary: BenchSummary | EmulationSummary | CheckpointSummary
    readings: tuple[Reading, ...] = ()
    trials: tuple[Trial, ...] = ()
    checkpoints: tuple[CheckpointReading, ...] = ()

    def delivered(self) -> dict[str, float]:
        """The samples/s that each endpoint gave without training, with the fastest settings and the first format.

        Of a warm cache where that was read. Readings with training say what the computing of that model allowed: they
        do not count.
        """
        taken = [
            each for each in self.readings if each.cell.mode is Mode.LOADER and each.endpoint is not ReadPath.MOUNT
        ]
        warm = {each.endpoint for each in taken if each.temperature is CacheState.WARM}
        rates: dict[tuple[ReadPath, BenchCase], list[float]] = {}
        for each in taken:
            is_known = each.temperature is CacheState.WARM or each.endpoint not in warm
            if is_known and each.cell.format == self.readings[0].cell.format:
                rates.setdefault((each.endpoint, each.cell), []).append(each.samples_per_s)
        fastest: dict[str, float] = {}
        for (endpoint, _), found in rates.items():
            fastest[str(endpoint)] = max(statistics.median(found), fastest.get(str(endpoint), 0.0))
        return fastest

    def rates(self) -> dict[str, list[float]]:
        """Samples/s, or bytes/s of checkpoints, by what was measured, in words; one for each round."""
        found: dict[str, list[float]] = {}
        cells = {each.cell for each in self.readings}
        several = len({cell.words for cell in cells}) < len(cells)  # datasets of one format
        for each in self.readings:
            setup = f"{each.cell.words}, {each.cell.dataset}" if several else each.cell.words
            found.setdefault(f"{each.endpoint} {each.temperature}, {setup}", []).append(each.samples_per_s)
        for trial in self.trials:
            what = f"{trial.path} {trial.temperature}, {counted(trial.accelerators, 'accelerator')}"
            found.setdefault(what, []).append(trial.samples_per_s)
        for one in self.checkpoints:
            what = f"checkpoint of {one.bytes / 1e6:,.1f} MB, {one.what}"
            found.setdefault(what, []).append(one.bytes_per_s)
        return {what: [rate for rate in rates if rate > 0] for what, rates in found.items()}


def benches_dir() -> Path:
    """The folder of the saved benchmarks; it may be missing."""
    return state_dir() / "benches"


def bench_path(name: str) -> Path:
    """The file of a saved benchmark. Raises SettingsError for a name that is not one."""
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} is not a name for a benchmark.", remedy="Use letters, digits, dots, dashes, underscores."
        )
    return benches_dir() / f"{name}{SUFFIX}"


def check_new(name: str) -> None:
    """Raises SettingsError where a benchmark of that name exists already."""
    if bench_path(name).exists():
        raise SettingsError(f"The benchmark {name!r} is already saved.", remedy=f"Use another name. {_REMEDY}")


def save(bench: SavedBench) -> Path:
    """Writes the file (0600) and returns its path. Raises SettingsError."""
    path = bench_path(bench.name)
    write_private(path, encode_json(bench))
    return path


def load(name: str) -> SavedBench:
    """The saved benchmark. Raises SettingsError where there is none, or the file is not one."""
    path = bench_path(name)
    data = read_private(path)
    if data is None:
        raise SettingsError(f"There is no saved benchmark {name!r}.", remedy=_REMEDY)
    try:
        return decode_json(data, SavedBench)
    except (msgspec.DecodeError, ValueError) as error:
        raise SettingsError(f"{path} is not a saved benchmark: {error}.", remedy=_REMEDY) from error


def saved_benches() -> list[SavedBench]:
    """All saved benchmarks, the newest first; other files are left out."""
    found = []
    for path in sorted(benches_dir().glob(f"*{SUFFIX}")):
        with contextlib.suppress(ConsoleError):
            found.append(load(path.name.removesuffix(SUFFIX)))
    return sorted(found, key=lambda bench: bench.saved, reverse=True)


class BenchComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two saved benchmarks: the differences in what both measured, and what else differs between them."""

    first: str
    second: str
    differences: tuple[Difference, ...]
    changed: dict[str, tuple[str, str]]


def compare(first: SavedBench, second: SavedBench) -> BenchComparison:
    """Compares two saved benchmarks. Raises SettingsError where they measured nothing alike."""
    found = differences(first.rates(), second.rates())
    if not found:
        raise SettingsError(
            f"{first.name} and {second.name} measured nothing alike.",
            remedy="Save both with the same --workers, --batch-size and --mode, or the same --emulate.",
        )
    return BenchComparison(
        first=first.name,
        second=second.name,
        differences=tuple(found),
        changed=_changed(first.provenance, second.provenance),
    )


def _changed(first: Provenance, second: Provenance) -> dict[str, tuple[str, str]]:
    sides = [_flat(msgspec.to_builtins(each)) for each in (first, second)]
    return {
        name: (sides[0].get(name, ""), sides[1].get(name, ""))
        for name in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(name, "") != sides[1].get(name, "")
    }


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{name} "))
        else:
            found[prefix + name] = str(value)
    return found


def provenance(
    profile: Profile, credentials: CredentialSource, dataset: str, arguments: Sequence[str], *, mount: str = ""
) -> Provenance:
    """Of this machine, now. Asks the metadata service (1 s elsewhere than on an ECS instance) and the bucket."""
    import psutil

    instance = Instance(region="")
    if not profile.simulated:
        with contextlib.suppress(ConsoleError):  # not an ECS instance
            instance = MetadataService().instance()
    accelerator = find_accelerator(profile, credentials)
    return Provenance(
        versions=installed_versions(),
        python=platform.python_version(),
        kernel=platform.release(),
        processor=processor_name(),
        cores=usable_cores(),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        instance_type=instance.instance_type,
        zone=instance.zone or (accelerator.zone if accelerator is not None else ""),
        region=instance.region or profile.region,
        nic=_nic(),
        bucket=profile.bucket,
        endpoints={str(kind): _host(profile.endpoint(kind) or "") for kind in EndpointKind},
        accelerator_gb=accelerator.quota_gb if accelerator is not None else 0,
        dataset=dataset,
        mount=mount,
        simulated=profile.simulated,
        command=without_secrets(["ossconsole", *arguments], credentials()),
    )


def without_secrets(arguments: Iterable[str], credentials: Credentials) -> str:
    """A command line as text, with "***" for what is part of a credential, and for passwords in URLs."""
    token = credentials.security_token
    secrets = [credentials.access_key_id, credentials.access_key_secret.reveal(), token.reveal() if token else ""]
    text = shlex.join(arguments)
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    text = re.sub(r"LTAI[A-Za-z0-9]{8,}", "***", text)
    return re.sub(r"(\w+://)[^/\s'@]+@", r"\1***@", text)


def _host(endpoint: str) -> str:
    return urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").hostname or ""


def _nic() -> str:
    """The interface of the default route, its driver and speed; the speed is unknown for most virtual ones."""
    try:
        routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
        name = next((fields[0] for fields in routes if fields[1] == "00000000"), "")
    except (OSError, IndexError):
        return ""
    if not name:
        return ""
    device = Path("/sys/class/net", name)
    parts = [name]
    driver = device / "device" / "driver"
    if driver.exists():
        parts.append(driver.resolve().name)
    try:
        speed = int((device / "speed").read_text())
    except (OSError, ValueError):
        speed = 0
    return ", ".join([*parts, *([f"{speed:,} Mbit/s"] if speed > 0 else [])])


def saved_now(name: str, provenance: Provenance, events: Sequence[object]) -> SavedBench:
    """A benchmark from its events, the last of which is the summary."""
    summary = events[-1]
    assert isinstance(summary, SUMMARIES)  # noqa: S101
    return SavedBench(
        name=name,
        saved=time.time(),
        provenance=provenance,
        summary=summary,
        readings=tuple(each for each in events if isinstance(each, Reading)),
        trials=tuple(each for each in events if isinstance(each, Trial)),
        checkpoints=tuple(each for each in events if isinstance(each, CheckpointReading)),
    )
