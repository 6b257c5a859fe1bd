"""The doctor's checks: machine, terminal, GPU and its libraries, settings, credentials, connector, dataset.

Each check returns its result and raises nothing that a user can cause.
"""

from __future__ import annotations

import ctypes
import errno
import locale
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.alibaba_credentials import CliProfileSource, SdkFileSource
from ossconsole.config.checks import Check, LimitError, fail, limited, ok, warn
from ossconsole.config.connector import QUIET_LOG_LEVEL, connector_config_path, load_connector_config
from ossconsole.config.credential_sources import FileSource, SourceState, describe_passed_over, loose_mode
from ossconsole.config.credentials import SAFE_PATH, Credentials, CredentialSource, mask_key_id, without_credentials
from ossconsole.config.endpoints import region_caution
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import (
    CONFIG_DIR_VARIABLE,
    STATE_DIR_VARIABLE,
    config_dir,
    exposed_folders,
    logs_dir,
    state_dir,
)
from ossconsole.config.metadata import MetadataError, MetadataService
from ossconsole.config.profiles import Profile, endpoint_problem
from ossconsole.config.renewal import RenewedSource, ends_within, utc_now
from ossconsole.config.spawning import module_command
from ossconsole.config.text import counted
from ossconsole.dataset.manifest import SHARDS_NAME, SPLITS, ManifestMissingError, manifest_key, object_key
from ossconsole.storage.errors import StorageError
from ossconsole.telemetry.gpu import REINSTALL, Driver, GpuReader, cuda_problem, read_driver
from ossconsole.telemetry.samples import GpuSnapshot
from ossconsole.terminal.tty import MIN_COLUMNS, MIN_ROWS
from ossconsole.training.preflight import TorchReport

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore
    from ossconsole.training.data import TrainingData

SUPPORTED_PYTHONS = ((3, 10), (3, 13))
MIN_GLIBC = (2, 17)  # of osstorchconnector's wheels (manylinux2014), which exist for x86-64 only
FEW_OPEN_FILES, TOO_FEW_OPEN_FILES = 4096, 512
_USERFAULTFD = 323  # syscall number on x86-64
_GB = 1e9


def python_check(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    """Whether osstorchconnector has a build for this Python."""
    oldest, newest = SUPPORTED_PYTHONS
    text = f"{platform.python_implementation()} {'.'.join(map(str, version))}, {sys.executable}"
    if oldest <= version <= newest:
        return ok("python", text)
    return fail("python", f"{text}: osstorchconnector has no build for it.", "Create the venv with python3.12 -m venv")


def glibc_check(version: str | None = None, machine: str = platform.machine()) -> Check:
    """Whether the connector's wheels run here. `version` reads like `glibc 2.36`, "" for another C library."""
    try:
        found = (os.confstr("CS_GNU_LIBC_VERSION") or "") if version is None else version
    except (OSError, ValueError):
        found = ""
    text = f"{found or 'no glibc'} on {machine}"
    numbers = tuple(int(part) for part in found.removeprefix("glibc ").split(".")[:2]) if found else ()
    if machine != "x86_64" or numbers < MIN_GLIBC:
        return fail(
            "glibc", f"{text}: osstorchconnector needs glibc 2.17 or newer on x86_64.", "Use an Ubuntu 22.04 image."
        )
    return ok("glibc", text)


def userfaultfd_check() -> Check:
    """Tests the system call that the connector's checkpoint reader needs."""
    name = "userfaultfd"
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor >= 0:
        os.close(descriptor)
        return ok(name, "Available.")
    code = ctypes.get_errno()
    reason = errno.errorcode.get(code, str(code))
    return warn(
        name,
        f"Not available ({reason}): the connector cannot read checkpoints; this console reads them without it.",
        "sudo sysctl vm.unprivileged_userfaultfd=1" if code == errno.EPERM else "",
    )


def open_files_check() -> Check:
    """Whether the limit of open files is high enough for the readers' connections."""
    name = "open files"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"Open files limit {soft}" + (f", can be raised to {hard}." if hard != soft else ".")
    remedy = f"ulimit -n {hard if hard != resource.RLIM_INFINITY else 65536}"
    if soft < TOO_FEW_OPEN_FILES:
        return fail(name, text, remedy)
    return warn(name, text, remedy) if soft < FEW_OPEN_FILES and hard > soft else ok(name, text)


def folders_check() -> Check:
    """Whether the settings and state folders are writable, for this user alone."""
    name = "folders"
    state, config = state_dir(), config_dir()
    for folder in (state, logs_dir()):
        if not _is_writable(folder):
            return fail(
                name,
                f"The state folder {folder} cannot be written: no run, no upload and no console can start.",
                f"Make it writable, or set {STATE_DIR_VARIABLE} to a folder that is writable for you.",
            )
    if not _is_writable(config):
        return warn(
            name,
            f"The settings folder {config} cannot be written: profiles cannot be changed.",
            f"Make it writable, or set {CONFIG_DIR_VARIABLE} to a folder that is writable for you.",
        )
    exposed = list(exposed_folders())
    return warn(name, exposed[0]) if exposed else ok(name, f"{state} and {config} can be written by you alone.")


def existing_part(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def _is_writable(folder: Path) -> bool:
    """Whether it is writable, or can be created."""
    found = existing_part(folder)
    return found.is_dir() and os.access(found, os.W_OK | os.X_OK)


def least_free(*folders: Path) -> Path:
    """The folder whose disk has the least free space."""
    return min(folders, key=lambda folder: shutil.disk_usage(existing_part(folder)).free)


def disk_check(folder: Path, *, few_bytes: float = 2 * _GB, too_few_bytes: float = 0.2 * _GB) -> Check:
    """Free space for logs, run records, journals and the sandbox's objects."""
    name = "disk"
    free = shutil.disk_usage(existing_part(folder)).free
    text = f"{free / _GB:.1f} GB free for {folder}."
    remedy = f"Free some space, or set OSSCONSOLE_STATE_DIR to a folder on a larger disk.   du -sh {folder}"
    if free < too_few_bytes:
        return fail(name, text, remedy)
    return warn(name, text, remedy) if free < few_bytes else ok(name, text)


FULL_SIZE = os.terminal_size((80, 24))
_TMUX_LIMIT_S = 1.0


def terminal_check(environ: Mapping[str, str] = os.environ, size: os.terminal_size | None = None) -> Check:
    """Size, colours, Unicode, and whether tmux passes copied text on to the clipboard."""
    name = "terminal"
    found = size or _size()
    if found is None:
        return ok(name, "No terminal: the console needs one, `ossconsole train --json` does not.")
    kind = environ.get("TERM", "")
    colours = _colours(environ)
    unicode = "utf" in locale.getpreferredencoding(False).lower()
    text = (
        f"{found.columns}x{found.lines}, {kind or 'TERM not set'}, {colours}, {'Unicode' if unicode else 'ASCII only'}"
    )
    problems = []
    if kind in {"", "dumb"}:
        problems.append(("It cannot move its cursor.", "export TERM=xterm-256color"))
    if found.columns < MIN_COLUMNS or found.lines < MIN_ROWS:
        problems.append((f"The console needs {MIN_COLUMNS}x{MIN_ROWS}.", "Make the window larger."))
    elif found.columns < FULL_SIZE.columns or found.lines < FULL_SIZE.lines:
        problems.append(
            (f"Panels are left out below {FULL_SIZE.columns}x{FULL_SIZE.lines}.", "Make the window larger.")
        )
    if not unicode:
        problems.append(("Charts and frames are drawn in ASCII.", "export LANG=C.UTF-8"))
    if "TMUX" in environ and not _tmux_clipboard():
        problems.append(("tmux does not pass copied text on to the clipboard.", "tmux set -s set-clipboard on"))
    if problems:
        return warn(name, " ".join([f"{text}.", *(what for what, _ in problems)]), problems[0][1])
    return ok(name, f"{text}.")


def _size() -> os.terminal_size | None:
    """The size of the controlling terminal, which exists even when the output is redirected."""
    try:
        descriptor = os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return None
    try:
        return os.get_terminal_size(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _colours(environ: Mapping[str, str]) -> str:
    if environ.get("NO_COLOR"):
        return "no colours (NO_COLOR)"
    if environ.get("COLORTERM", "").lower() in {"truecolor", "24bit"}:
        return "16 million colours"
    return "256 colours" if "256color" in environ.get("TERM", "") else "16 colours"


def _tmux_clipboard() -> bool:
    tmux = shutil.which("tmux")
    if tmux is None:
        return True
    try:
        done = subprocess.run(  # noqa: S603
            (tmux, "show-options", "-sv", "set-clipboard"), capture_output=True, timeout=_TMUX_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return done.stdout.strip() != b"off"


SMALL_GPU_BYTES = 2e9  # ResNet-18 at batch 64 and 224 px takes less than this
NCCL_BYTES = 1e9  # as NVIDIA advises for a container (--shm-size=1g)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a mount, not a file
_LIBRARIES = ("torch", "torchvision", "osstorchconnector")

TORCH_NAMES = ("torch", "cuda")
GPU_NAMES = ("nvml", "gpu memory")


def gpu_checks(snapshot: GpuSnapshot | None = None) -> list[Check]:
    """NVML, and the free memory of each GPU."""
    if snapshot is None:
        reader = GpuReader()
        reader.open()
        snapshot = reader.read()
        reader.close()
    if snapshot.problem:
        return [warn("nvml", snapshot.problem), warn("gpu memory", "No GPU: training runs on the CPU.")]
    silent = [gpu for gpu in snapshot.gpus if gpu.memory_total is None]
    nvml = (
        warn("nvml", " ".join(f"GPU {gpu.index}: {gpu.problem}" for gpu in silent), "nvidia-smi -q")
        if silent
        else ok("nvml", ", ".join(f"GPU {gpu.index}: {gpu.name}" for gpu in snapshot.gpus))
    )
    free = [
        (gpu.index, gpu.memory_total - gpu.memory_used)
        for gpu in snapshot.gpus
        if gpu.memory_total is not None and gpu.memory_used is not None
    ]
    text = ", ".join(f"GPU {index}: {amount / 1e9:.1f} GB free" for index, amount in free)
    nccl = [nccl_memory_check()] if len(snapshot.gpus) > 1 else []
    if not free:
        return [nvml, warn("gpu memory", "NVML reports no metrics."), *nccl]
    if max(amount for _, amount in free) < SMALL_GPU_BYTES:
        return [nvml, fail("gpu memory", f"{text}: too little to train.", "List its users: nvidia-smi"), *nccl]
    return [nvml, ok("gpu memory", text), *nccl]


def nccl_memory_check(folder: Path = _SHARED_MEMORY) -> Check:
    """Whether NCCL has enough shared memory for several GPUs; a container may limit it."""
    name = "shared memory"
    remedy = f"docker run --shm-size=1g, or: sudo mount -o remount,size=1G {folder}"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return warn(name, f"{folder} cannot be checked: {error.strerror}; NCCL needs it for several GPUs.", remedy)
    text = f"{free / 1e9:.1f} GB free in {folder}; NCCL uses it for several GPUs."
    return ok(name, text) if free >= NCCL_BYTES else warn(name, text, remedy)


def torch_checks(limit_s: float) -> list[Check]:
    """Whether torch, torchvision and the connector can be imported together, and whether torch can use the GPU.

    They are imported in a child process: it takes seconds, and a broken build may crash it.
    """
    missing = [name for name in _LIBRARIES if _version(name) is None]
    installed = ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES if name not in missing)
    if missing:
        detail = f"Not installed: {', '.join(missing)}."
        return [fail("torch", detail, f"pip install {' '.join(missing)}"), warn("cuda", "Unknown without torch.")]
    command = module_command("ossconsole.training.preflight")
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, timeout=limit_s, check=False, env={**without_credentials(), **SAFE_PATH}
        )
    except subprocess.TimeoutExpired:
        detail = f"{installed}: not imported within {limit_s:.0f} s."
        remedy = "Check this machine's load and disk."
        return [warn("torch", detail, remedy), warn("cuda", "Unknown without torch.")]
    try:
        report = msgspec.json.decode(done.stdout, type=TorchReport)
    except msgspec.DecodeError:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        last = words[-1] if words else f"exit code {done.returncode}"
        return [fail("torch", f"{installed}: the import ended with {last}.", REINSTALL), warn("cuda", "Unknown.")]
    return torch_results(report, read_driver())


def torch_results(report: TorchReport, driver: Driver | None) -> list[Check]:
    """The `torch` and `cuda` checks from the child's report and the driver's versions."""
    versions = f"torch {report.torch}, torchvision {report.torchvision}, osstorchconnector {report.connector}"
    if report.problem:
        return [fail("torch", f"{versions}: {report.problem}", REINSTALL), _cuda(report, driver)]
    return [ok("torch", f"{versions} can be imported together."), _cuda(report, driver)]


def _cuda(report: TorchReport, driver: Driver | None) -> Check:
    name = "cuda"
    built = f"torch is built for CUDA {report.cuda_built}" if report.cuda_built else "torch is built without CUDA"
    if report.cuda_available:
        return ok(name, f"{built}; it uses {', '.join(report.devices)}.")
    if driver is None:
        return warn(name, f"{built}; there is no NVIDIA driver, so that training runs on the CPU.")
    return fail(name, *cuda_problem(report.cuda_built, driver))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


SOON = timedelta(hours=1)
_SELECT_REMEDY = "Correct it, or name the source in the profile's credentials, such as aliyun:NAME."


def settings_check(profile: Profile) -> Check:
    """Names the profile, which was validated when it was loaded, and an endpoint that cannot be right."""
    text = f"Profile {profile.name}: bucket {profile.bucket} in {profile.region}."
    problem = endpoint_problem(profile)
    return fail("settings", f"{text} {problem.message}", problem.remedy) if problem else ok("settings", text)


def connector_config_check() -> Check:
    """Whether the connector's file is valid, and its log level keeps AccessKey IDs out of the log."""
    name, path = "connector config", connector_config_path()
    values = load_connector_config()
    if not values:
        return ok(name, f"{path} does not exist yet: the defaults apply.")
    if int(values.get("logLevel", QUIET_LOG_LEVEL)) < QUIET_LOG_LEVEL:
        return warn(
            name,
            f"{path}: with logLevel {values['logLevel']} the connector writes AccessKey IDs to its log.",
            f"Set logLevel to {QUIET_LOG_LEVEL} or 3, except while you debug.",
        )
    return ok(name, f"{path} is valid.")


def credentials_check(source: CredentialSource, passed_over: tuple[SourceState, ...] = ()) -> Check:
    """Whether there is a key pair, when it expires, whether other users can read its file, and which sources failed."""
    name = "credentials"
    found = source()
    renews = isinstance(source, RenewedSource) and not (isinstance(source, FileSource) and source.kind == "connector")
    renewed = ", renewed before" if renews and found.expiration is not None else ""
    text = f"{mask_key_id(found.access_key_id)} from {found.source}, {_end(found)}{renewed}"
    others = describe_passed_over(passed_over)
    text += others
    if ends_within(found, timedelta(0)):
        return fail(name, f"{text}.", "Fetch new temporary credentials, or enter an AccessKey on the Setup screen.")
    file = source.path if isinstance(source, FileSource | CliProfileSource | SdkFileSource) else None
    if file is not None and (mode := loose_mode(file)) is not None:
        return warn(name, f"{text}; other users of this machine can read its file ({mode:04o}).", f"chmod 600 {file}")
    if others:
        return warn(name, f"{text}.", next((state.remedy for state in passed_over if state.remedy), _SELECT_REMEDY))
    if ends_within(found, SOON) and not renews:
        return warn(name, f"{text}.", "Fetch new ones before a long run.")
    return ok(name, f"{text}.")


def instance_check(profile: Profile | None) -> Check:
    """Whether this instance is in the bucket's region."""
    name = "instance"
    try:
        found = MetadataService().instance()
    except MetadataError:
        return ok(name, "Not an ECS instance: no metadata service answers.")
    text = f"{found.instance_type} in {found.zone or found.region}"
    if profile is None or profile.simulated:
        return ok(name, f"{text}.")
    caution = region_caution(found.region, profile.region, profile.endpoints.values())
    remedy = f"Use an instance in {profile.region}, or a bucket in {found.region}."
    return warn(name, f"{text}. {caution}", remedy) if caution else ok(name, f"{text}.")


def failed(name: str, error: ConsoleError) -> Check:
    """The failed check of an error."""
    return fail(name, error.message, error.remedy)


def _end(credentials: Credentials) -> str:
    if credentials.expiration is None:  # a token always ends; some files do not say when
        return "expiry unknown" if credentials.security_token else "without expiry"
    left = credentials.expiration - utc_now()
    if left <= timedelta(0):
        return f"expired at {credentials.expiration:%Y-%m-%d %H:%M:%S} UTC"
    minutes = int(left.total_seconds() // 60)
    return f"expires in {minutes // 60} h {minutes % 60} min"


LARGE_MANIFEST_BYTES = 32 << 20  # about 400,000 samples; a larger one takes too long
LISTING_LIMIT_S = 4.0  # a dataset without a manifest may have millions of objects
_NAME = "dataset"


def dataset_check(store: ObjectStore) -> tuple[Check, int | None]:
    """The check, and the dataset's size in bytes (None: unknown). Raises StorageError."""
    prefix = store.profile.dataset_prefix
    try:
        if large := _large_manifest(store, prefix):
            return ok(_NAME, large), None
        data = limited(LISTING_LIMIT_S, lambda: _training_data(store, prefix), f"Listing {store.uri(prefix)}")
    except LimitError:
        detail = f"{store.uri(prefix)} has no manifest: every run lists its objects, which takes long here."
        return warn(_NAME, detail, f"To keep the list: ossconsole manifest --dataset-prefix {prefix}"), None
    except ManifestMissingError as error:
        return warn(_NAME, error.message, error.remedy), None
    except StorageError:
        raise
    except ConsoleError as error:
        return fail(_NAME, error.message, error.remedy), None
    return _dataset_result(data, store.uri(prefix))


def _training_data(store: ObjectStore, prefix: str) -> TrainingData:
    """The dataset as a run with the default settings has it. A listing ends with the time of the check."""
    from ossconsole.training.data import training_data
    from ossconsole.training.settings import TrainSettings

    until = time.monotonic() + LISTING_LIMIT_S

    def check_time(_listed: int) -> None:
        if time.monotonic() > until:
            raise LimitError("The listing takes too long.")

    return training_data(store, prefix, val_split=TrainSettings().val_split, on_progress=check_time)


def _large_manifest(store: ObjectStore, prefix: str) -> str:
    """The text for a manifest or list of shards that is too large to read here; "" for any other."""
    for key in (manifest_key(prefix), object_key(prefix, SHARDS_NAME)):
        if store.exists(key):
            size = store.head(key).size
            return (
                f"{store.uri(key)} has {size / 1e6:,.0f} MB, too large to check." if size > LARGE_MANIFEST_BYTES else ""
            )
    return ""


def _dataset_result(data: TrainingData, uri: str) -> tuple[Check, int]:
    counts = ", ".join(f"{data.count(split):,} {split}" for split in SPLITS if data.count(split))
    stored = " in tar shards" if data.sharded else ""
    classes = counted(len(data.classes), "class", "classes")
    text = (
        f"{uri}: {counts} in {classes}, {data.format.at_size(data.size)}{stored}, "
        f"{data.bytes / 1e9:,.2f} GB. {' '.join([*data.notes, data.missing])}"
    ).rstrip()
    if not data.remarks:
        return ok(_NAME, text), data.bytes
    messages = " ".join(remark.message for remark in data.remarks)
    remedy = next((remark.remedy for remark in data.remarks if remark.remedy), "")
    return warn(_NAME, f"{text} {messages}", remedy), data.bytes
