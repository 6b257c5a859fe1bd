"""The sandbox as a child process: its simulated speeds, starting it, reading its address and keys, stopping it."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from ossconsole.config.credentials import (
    SAFE_PATH,
    Credentials,
    Secret,
    conceal_secret,
    reveal_secret,
    without_credentials,
)
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import open_private, write_remedy
from ossconsole.config.profiles import Profile
from ossconsole.config.spawning import module_command

LOG_NAME = "sandbox.log"
INFO_NAME = "running.json"
LOCK_NAME = "lock"
SLOWED_NAME = "slowed"
DATASET_PREFIX = "dataset/sample"
CHECKPOINT_PREFIX = "checkpoints"
_LOG_LINES_SHOWN = 4
_MIN_FREE_BYTES = 64 << 10
_STOP_TIMEOUT_S = 5.0

# Keeps buffers of request size on the heap instead of mapping and faulting in fresh pages for each (glibc).
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}


class Shaping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The simulated speeds; 0 turns one off. Rates are totals over all connections."""

    standard_first_byte_ms: float = 35.0
    standard_objects_per_s: float = 103.0
    accelerated_first_byte_ms: float = 2.0
    cache_mb: float = 512.0
    bandwidth_mb_s: float = 0.0
    put_first_byte_ms: float = 0.0

    @classmethod
    def none(cls) -> Shaping:
        """No delays, no limits and no cache."""
        return cls(standard_first_byte_ms=0, standard_objects_per_s=0, accelerated_first_byte_ms=0, cache_mb=0)


class SandboxError(ConsoleError):
    """The sandbox could not be started."""


class SandboxInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON line that `ossconsole sandbox` prints when it is ready, and the content of `running.json`."""

    bucket: str
    region: str
    endpoints: dict[str, str]
    path_style_endpoint: str
    access_key_id: str
    access_key_secret: Secret
    metadata_endpoint: str | None = None
    """The URL of the simulated instance metadata service, None when it is off."""
    pid: int = 0
    shared: bool = False
    """True for one that a console or a command started for every user of the folder; it ends with the last of them."""

    @property
    def port(self) -> int:
        """The port of both endpoints."""
        return urlsplit(self.path_style_endpoint).port or 0

    def encode(self) -> bytes:
        """The JSON line, with the secret in clear for the process that started the sandbox."""
        return msgspec.json.encode(self, enc_hook=reveal_secret)

    @classmethod
    def decode(cls, line: bytes) -> SandboxInfo:
        """The inverse of `encode`. Raises msgspec.DecodeError."""
        return msgspec.json.decode(line, type=cls, dec_hook=conceal_secret)


class RunningSandbox:
    """A sandbox that answers requests: its address, folder, profile and credentials."""

    def __init__(self, info: SandboxInfo, directory: Path) -> None:
        self.info = info
        self.directory = directory

    @property
    def log_path(self) -> Path:
        """The request log, with the process's stderr."""
        return self.directory / LOG_NAME

    def profile(self) -> Profile:
        """The profile that reaches this sandbox."""
        return Profile(
            name="sandbox",
            region=self.info.region,
            bucket=self.info.bucket,
            standard_endpoint=self.info.endpoints[EndpointKind.STANDARD.value],
            accelerated_endpoint=self.info.endpoints[EndpointKind.ACCELERATED.value],
            dataset_prefix=DATASET_PREFIX,
            checkpoint_prefix=CHECKPOINT_PREFIX,
            simulated=True,
        )

    def credentials(self) -> Credentials:
        """The key pair of this sandbox's owner."""
        return Credentials(self.info.access_key_id, self.info.access_key_secret, source="sandbox")


class SandboxProcess(RunningSandbox, AbstractContextManager["SandboxProcess"]):
    """A sandbox of this process alone. It ends with `stop()`, with the `with` block, and with this process."""

    def __init__(self, process: subprocess.Popen[bytes], info: SandboxInfo, directory: Path) -> None:
        super().__init__(info, directory)
        self._process = process
        self.pid = process.pid

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        port: int = 0,
        unshaped: bool = False,
        timeout_s: float = 20.0,
        arguments: Sequence[str] = (),
    ) -> SandboxProcess:
        """Starts a sandbox on `directory` and waits until it answers; port 0 selects a free one.

        `arguments` are further options of `ossconsole sandbox`. Raises SandboxError.
        """
        options = ["--port", str(port), "--until-stdin-closes", *(["--unshaped"] if unshaped else []), *arguments]
        process, info = spawn(directory, options, timeout_s)
        return cls(process, info, directory)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends the process and waits for it; a second call does nothing."""
        end(self._process)

    def __exit__(self, *_exception: object) -> None:
        self.stop()


def spawn(directory: Path, options: Sequence[str], timeout_s: float) -> tuple[subprocess.Popen[bytes], SandboxInfo]:
    """Starts `ossconsole sandbox` on `directory` and waits until it answers. Raises SandboxError, SettingsError."""
    command = module_command("ossconsole", "sandbox", "--dir", str(directory), *options)
    with os.fdopen(open_private(directory / LOG_NAME), "ab") as log:
        # The child can end with its stdin, which closes however this process ends. PR_SET_PDEATHSIG would also fire
        # when only the *thread* that started the child ends.
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**_MALLOC, **without_credentials(), **SAFE_PATH},
            start_new_session=True,
        )
    try:
        return process, _read_info(process, directory, timeout_s)
    except BaseException:
        end(process)
        raise


def _read_info(process: subprocess.Popen[bytes], directory: Path, timeout_s: float) -> SandboxInfo:
    line = _read_line(process, timeout_s)
    if line is None:
        raise SandboxError(
            f"The sandbox on {directory} was not ready within {timeout_s:g} s.", remedy=_log_remedy(directory)
        )
    try:
        return SandboxInfo.decode(line)
    except msgspec.DecodeError as error:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
        raise SandboxError(
            f"The sandbox on {directory} ended before it was ready (exit code {process.returncode}).",
            remedy=_log_remedy(directory),
        ) from error


def _read_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes | None:
    """The first line of the process's stdout (cut short where it ends before), None on timeout."""
    assert process.stdout is not None  # noqa: S101
    deadline = time.monotonic() + timeout_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                break
            line += chunk
    return line


def _log_remedy(directory: Path) -> str:
    """Names the log and quotes its last lines. On a full disk they say nothing, because they could not be written."""
    path = directory / LOG_NAME
    if shutil.disk_usage(directory).free < _MIN_FREE_BYTES:
        return f"The disk is full. {write_remedy(path, OSError(errno.ENOSPC, ''))}"
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()][-_LOG_LINES_SHOWN:]
    return f"See {path}." + (f" It ends with: {' | '.join(lines)}" if lines else "")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process with SIGTERM, or after 5 s with SIGKILL, and waits for it."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
