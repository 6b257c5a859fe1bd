"""Control of a run or an upload from another process of the same user, through a private socket.

One socket per process, `control/<host>/<pid>.sock` in the state folder (0600, in a folder 0700). Machines may share the
state folder, and two of them may have processes with the same pid. The kernel reports the caller's user; only this user
and root get answers. A call is one JSON line, and so is the answer.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, Union

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import decode_json, encode_json, make_folder, reason, state_dir, write_remedy
from ossconsole.config.profiles import Profile
from ossconsole.dataset.upload.job import UploadJob, UploadSummary
from ossconsole.dataset.upload.progress import UploadProgress

log = logging.getLogger(__name__)

_SUFFIX = ".sock"
_MAX_LINE_BYTES = 8 << 20
_TIMEOUT_S = 2.0
_RETRY_S = 0.5
_BACKLOG = 16
_WATCHED_S = 2.0  # an AttachedUpload polls twice a second


class _RunCommand(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", forbid_unknown_fields=True):
    """`run` is the id of the run that the command is for: a later run must not get it."""

    run: str


class Pause(_RunCommand, frozen=True, kw_only=True, tag="pause"):
    """Pauses the run after the step under way."""


class Resume(_RunCommand, frozen=True, kw_only=True, tag="resume"):
    """Ends a pause."""


class Stop(_RunCommand, frozen=True, kw_only=True, tag="stop"):
    """Ends the run after the step under way, with a checkpoint."""


class SaveCheckpoint(_RunCommand, frozen=True, kw_only=True, tag="checkpoint"):
    """Writes a checkpoint after the step under way."""


class ProfileSteps(_RunCommand, frozen=True, kw_only=True, tag="profile"):
    """Profiles the next steps."""


class SwitchEndpoint(_RunCommand, frozen=True, kw_only=True, tag="switch"):
    """Reads future batches through `endpoint`; `reason` goes into the event log."""

    endpoint: EndpointKind
    reason: str = "requested"


class SetLr(_RunCommand, frozen=True, kw_only=True, tag="set-lr"):
    """Changes the peak learning rate from the next step on."""

    lr: float


class UploadAction(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="upload", forbid_unknown_fields=True):
    """`action` is pause, resume, cancel, parallelism (samples sent simultaneously, in `number`) or bandwidth.

    The bandwidth is in bytes per second; None removes the cap.
    """

    action: str
    number: float | None = None


class GetReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="look", forbid_unknown_fields=True):
    """Requests a Report."""


RunCommand = Union[Pause, Resume, Stop, SaveCheckpoint, ProfileSteps, SwitchEndpoint, SetLr]  # noqa: UP007 - msgspec, 3.10
Command = Union[RunCommand, UploadAction, GetReport]  # noqa: UP007


class UploadReport(msgspec.Struct, frozen=True, kw_only=True):
    """The newest upload of a process, also after its end. `target` is the URI of its dataset, "" where not known."""

    source: str
    target: str = ""
    progress: UploadProgress
    summary: UploadSummary


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a process works on. `run` is the id of its run, "" when none is alive.

    `bucket` is "" for a script that is watched without a profile.
    """

    pid: int
    region: str = ""
    bucket: str = ""
    dataset_prefix: str = ""
    checkpoint_prefix: str = ""
    run: str = ""
    upload: UploadReport | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a command; `problem` is "" when it was carried out."""

    problem: str = ""
    remedy: str = ""
    report: Report | None = None


class ControllableRun(Protocol):
    """A run that other processes may control. Its requests return immediately; each may raise ConsoleError."""

    @property
    def id(self) -> str:
        """The id of the run."""

    @property
    def alive(self) -> bool:
        """False once the run has ended."""

    def pause(self) -> None:
        """Requests a pause after the step under way."""

    def resume(self) -> None:
        """Ends a pause."""

    def stop(self) -> None:
        """Requests the end of the run."""

    def checkpoint(self) -> None:
        """Requests a checkpoint after the step under way."""

    def profile(self) -> None:
        """Records the next steps with torch.profiler."""

    def set_lr(self, lr: float) -> None:
        """Changes the peak learning rate from the next step on."""

    def switch(self, kind: EndpointKind, reason: str) -> None:
        """Reads future batches through `kind`."""


class ControlTarget(Protocol):
    """What other processes may watch and control in this process."""

    @property
    def profile(self) -> Profile | None:
        """The active profile, None before there is one."""

    @property
    def own_run(self) -> ControllableRun | None:
        """The newest run of this process; None before the first."""

    @property
    def own_upload(self) -> UploadJob | None:
        """The newest upload of this process; None before the first."""


class ControlError(ConsoleError):
    """The other process refused a command, or does not respond."""


class ControlServer:
    """Answers other processes in a thread until it is closed. Raises ConsoleError."""

    def __init__(self, target: ControlTarget) -> None:
        self._target = target
        self._reported_at = -math.inf
        self._closing = threading.Event()
        self._name = f"{os.getpid()}{_SUFFIX}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            make_folder(control_dir())
            _remove_stale_sockets()
            with _folder() as folder:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._name, dir_fd=folder)  # of an earlier process with this pid
                self._socket.bind(_address(folder, self._name))
                os.chmod(self._name, 0o600, dir_fd=folder)
            self._socket.listen(_BACKLOG)
        except OSError as error:
            self._socket.close()
            raise ConsoleError(
                f"Other consoles cannot find this one: a socket in {control_dir()} failed: {reason(error)}.",
                remedy=write_remedy(control_dir(), error),
            ) from error
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closes the socket; first leaves two seconds to a process that watches the upload, so that it sees the end."""
        if time.monotonic() - self._reported_at < _WATCHED_S:
            time.sleep(_WATCHED_S)
        self._closing.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which close alone does not
        self._thread.join(_TIMEOUT_S)
        self._socket.close()
        with contextlib.suppress(OSError), _folder() as folder:
            os.unlink(self._name, dir_fd=folder)

    def __enter__(self) -> ControlServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                caller, _ = self._socket.accept()
            except OSError as error:
                if not self._closing.wait(_RETRY_S):  # such as too many open files, for a while
                    log.warning("No other process was answered: %s", error)
                continue
            # A silent caller must not block the next one.
            threading.Thread(target=self._serve_caller, args=(caller,), name="control-call", daemon=True).start()

    def _serve_caller(self, caller: socket.socket) -> None:
        # A caller that is gone or too slow gets no answer.
        with caller, contextlib.suppress(OSError):
            caller.settimeout(_TIMEOUT_S)
            if _is_ours(caller):
                caller.sendall(encode_json(self._answer(_read_line(caller))) + b"\n")

    def _answer(self, line: bytes) -> Answer:
        try:
            return self._do(msgspec.json.decode(line, type=Command))
        except msgspec.DecodeError as error:
            return Answer(problem=f"Invalid command: {error}.", remedy="Use the same version of ossconsole for both.")
        except ConsoleError as error:
            return Answer(problem=error.message, remedy=error.remedy)
        except Exception as error:  # the next command must be answered
            log.exception("A command of another process failed")
            problem = f"The command failed unexpectedly: {type(error).__name__}."
            return Answer(problem=problem, remedy="The log has the traceback.")

    def _do(self, command: Command) -> Answer:
        if isinstance(command, GetReport):
            report = self._report()
            if report.upload is not None:  # the record of a run has its end
                self._reported_at = time.monotonic()
            return Answer(report=report)
        if isinstance(command, UploadAction):
            self._control_upload(command)
            return Answer()
        run = self._target.own_run
        if run is None or run.id != command.run or not run.alive:
            return Answer(problem=f"The run {command.run} has ended.")
        log.info("Command of another process: %s", type(command).__name__)
        _control_run(run, command)
        return Answer()

    def _control_upload(self, command: UploadAction) -> None:
        upload = self._target.own_upload
        if upload is None or not upload.alive:
            raise ControlError("The upload has ended.")
        number = command.number
        actions: dict[str, Callable[[], object]] = {
            "pause": upload.pause,
            "resume": upload.resume,
            "cancel": upload.cancel,
            "parallelism": lambda: upload.set_parallelism(int(number or 1)),
            "bandwidth": lambda: upload.set_bandwidth(number or None),
        }
        if command.action not in actions:
            raise ControlError(f"{command.action!r} is not a valid action for an upload.")
        actions[command.action]()

    def _report(self) -> Report:
        target = self._target
        profile, run, upload = target.profile, target.own_run, target.own_upload
        report = Report(
            pid=os.getpid(),
            run=run.id if run is not None and run.alive else "",
            upload=None if upload is None else _upload_report(upload),
        )
        if profile is None:
            return report
        return msgspec.structs.replace(
            report,
            region=profile.region,
            bucket=profile.bucket,
            dataset_prefix=profile.dataset_prefix,
            checkpoint_prefix=profile.checkpoint_prefix,
        )


def _upload_report(upload: UploadJob) -> UploadReport:
    source = upload.settings.source.absolute()  # the reader of the report may be in another folder
    return UploadReport(source=str(source), target=upload.target, progress=upload.progress(), summary=upload.summary())


def _control_run(run: ControllableRun, command: RunCommand) -> None:
    if isinstance(command, Pause):
        run.pause()
    elif isinstance(command, Resume):
        run.resume()
    elif isinstance(command, Stop):
        run.stop()
    elif isinstance(command, SaveCheckpoint):
        run.checkpoint()
    elif isinstance(command, ProfileSteps):
        run.profile()
    elif isinstance(command, SwitchEndpoint):
        run.switch(command.endpoint, command.reason)
    else:
        run.set_lr(command.lr)


def ask(pid: int, command: Command) -> Answer:
    """Sends a command to a process and returns its answer. Raises ControlError, also after two seconds of silence."""
    try:
        with _folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as called:
            called.settimeout(_TIMEOUT_S)
            called.connect(_address(folder, f"{pid}{_SUFFIX}"))
            if not _is_ours(called):
                raise ControlError(f"Process {pid} belongs to another user.")
            called.sendall(msgspec.json.encode(command) + b"\n")
            answer: Answer = decode_json(_read_line(called), Answer)
    except (OSError, msgspec.DecodeError) as error:
        raise _unanswered(pid, in_time=not isinstance(error, TimeoutError)) from error
    if answer.problem:
        raise ControlError(answer.problem, remedy=answer.remedy)
    return answer


def _unanswered(pid: int, *, in_time: bool) -> ControlError:
    """The error for a process that has not answered; not `in_time` where it exists."""
    import psutil  # late: the console's first paint needs this module, not that one

    if in_time:
        return ControlError(
            f"Process {pid} is not responding: it has exited.", remedy="`ossconsole status` shows how its run ended."
        )
    with contextlib.suppress(psutil.Error):
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return ControlError(
                f"Process {pid} is suspended.",
                remedy=f"`fg` in its terminal or `kill -CONT {pid}` continues it; it then does what was asked.",
            )
    return ControlError(
        f"Process {pid} is not responding: no answer in time.",
        remedy="The machine may be overloaded; it may still do what was asked.",
    )


def peers() -> Iterator[Report]:
    """The reports of the user's other processes that answer. Removes the sockets of processes that exited."""
    _remove_stale_sockets()
    for path in sorted(control_dir().glob(f"*{_SUFFIX}")):
        if not path.stem.isdigit() or int(path.stem) == os.getpid():
            continue
        try:
            report = ask(int(path.stem), GetReport()).report
        except ControlError:
            continue
        if report is not None:
            yield report


def _remove_stale_sockets() -> None:
    """Removes the sockets of processes that were killed."""
    for path in control_dir().glob(f"*{_SUFFIX}"):
        if path.stem.isdigit() and not Path("/proc", path.stem).exists():
            with contextlib.suppress(OSError):  # a folder that cannot be written
                path.unlink(missing_ok=True)


def control_dir() -> Path:
    """The folder of the sockets of this machine; it may not exist."""
    return state_dir() / "control" / re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname() or "localhost")


@contextlib.contextmanager
def _folder() -> Iterator[int]:
    descriptor = os.open(control_dir(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _address(folder: int, name: str) -> str:
    """The path through an open folder: a socket path may have only 107 bytes."""
    return f"/proc/self/fd/{folder}/{name}"


def _is_ours(other: socket.socket) -> bool:
    """Whether the other side runs as this user or as root."""
    credentials = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in {0, os.geteuid()}


def _read_line(connection: socket.socket) -> bytes:
    """The first line. Raises OSError when it is longer than _MAX_LINE_BYTES, or the other side is slow."""
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(1 << 16)
        if not part:
            break
        line += part
        if len(line) > _MAX_LINE_BYTES:
            raise OSError("the line is too long")
    return line
