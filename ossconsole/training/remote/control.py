"""Control from another process of the same user: what works here is looked at and steered through a private socket.

One socket per process, `control/<pid>.sock` in the state folder (0600, in a folder 0700). The kernel tells who calls;
nobody but this user and root is answered. A call is one JSON line, and so is the answer.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Union

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import decode_json, make_folder, reason, state_dir, write_remedy
from ossconsole.config.profiles import Profile
from ossconsole.dataset.upload.job import UploadJob, UploadSummary
from ossconsole.dataset.upload.progress import UploadProgress
from ossconsole.training.run import TrainingRun

log = logging.getLogger(__name__)

_SUFFIX = ".sock"
_LONGEST_LINE = 8 << 20
_TIMEOUT_S = 2.0
_BACKLOG = 16
_WATCHED_S = 2.0  # who watches looks twice a second


class _Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", forbid_unknown_fields=True):
    """`run` is the id of the run that is meant: a later one must not get its commands."""

    run: str


class Pause(_Command, frozen=True, kw_only=True, tag="pause"):
    pass


class Resume(_Command, frozen=True, kw_only=True, tag="resume"):
    pass


class Stop(_Command, frozen=True, kw_only=True, tag="stop"):
    pass


class SaveCheckpoint(_Command, frozen=True, kw_only=True, tag="checkpoint"):
    pass


class Switch(_Command, frozen=True, kw_only=True, tag="switch"):
    endpoint: EndpointKind
    reason: str = "asked for"


class SetLr(_Command, frozen=True, kw_only=True, tag="set-lr"):
    lr: float


class UploadAction(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="upload", forbid_unknown_fields=True):
    """`action` is pause, resume or cancel."""

    action: str


class Look(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="look", forbid_unknown_fields=True):
    """Asks for a Report."""


RunCommand = Union[Pause, Resume, Stop, SaveCheckpoint, Switch, SetLr]  # noqa: UP007 - msgspec, 3.10
Command = Union[Pause, Resume, Stop, SaveCheckpoint, Switch, SetLr, UploadAction, Look]  # noqa: UP007


class UploadReport(msgspec.Struct, frozen=True, kw_only=True):
    """The newest upload of that process, also after its end."""

    source: str
    progress: UploadProgress
    summary: UploadSummary


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a process works on. `run` is the id of its run, "" where none is alive."""

    pid: int
    region: str = ""
    bucket: str = ""
    dataset_prefix: str = ""
    checkpoint_prefix: str = ""
    run: str = ""
    upload: UploadReport | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`problem` is "" where the command was carried out."""

    problem: str = ""
    remedy: str = ""
    report: Report | None = None


class ControlTarget(Protocol):
    """What a process lets others see and steer: its own run and its own upload."""

    @property
    def profile(self) -> Profile | None: ...

    @property
    def own_run(self) -> TrainingRun | None: ...

    @property
    def own_upload(self) -> UploadJob | None: ...


class ControlError(ConsoleError):
    """The other process did not do what it was asked."""


class ControlServer:
    """Answers other processes while it is open, in a thread of its own. Raises ConsoleError."""

    def __init__(self, workplace: ControlTarget) -> None:
        self._workplace = workplace
        self._looked_at = -math.inf
        self._name = f"{os.getpid()}{_SUFFIX}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            make_folder(control_dir())
            _remove_sockets_of_the_dead()
            with _folder() as folder:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._name, dir_fd=folder)  # of a process that had this number before
                self._socket.bind(_address(folder, self._name))
                os.chmod(self._name, 0o600, dir_fd=folder)
            self._socket.listen(_BACKLOG)
        except OSError as error:
            self._socket.close()
            raise ConsoleError(
                f"Other consoles cannot find this one: no socket in {control_dir()}: {reason(error)}.",
                remedy=write_remedy(control_dir(), error),
            ) from error
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answers no more. Whoever watches the upload can still see how it ended, for two seconds."""
        if time.monotonic() - self._looked_at < _WATCHED_S:
            time.sleep(_WATCHED_S)
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
        while True:
            try:
                caller, _ = self._socket.accept()
            except OSError:
                return
            # One that says nothing must not hold up the next.
            threading.Thread(target=self._talk, args=(caller,), name="control-call", daemon=True).start()

    def _talk(self, caller: socket.socket) -> None:
        # A caller that is gone or slow is its own trouble.
        with caller, contextlib.suppress(OSError):
            caller.settimeout(_TIMEOUT_S)
            if _is_ours(caller):
                caller.sendall(msgspec.json.encode(self._answer(_read_line(caller))) + b"\n")

    def _answer(self, line: bytes) -> Answer:
        try:
            return self._do(msgspec.json.decode(line, type=Command))
        except msgspec.DecodeError as error:
            return Answer(problem=f"Not understood: {error}.", remedy="Use the same version of ossconsole for both.")
        except ConsoleError as error:
            return Answer(problem=error.message, remedy=error.remedy)
        except Exception as error:
            log.exception("A command of another process failed")  # and the next one is answered all the same
            return Answer(problem=f"That failed unexpectedly: {type(error).__name__}.", remedy="The log tells more.")

    def _do(self, command: Command) -> Answer:
        if isinstance(command, Look):
            report = self._report()
            if report.upload is not None:  # a run tells of its end in its record
                self._looked_at = time.monotonic()
            return Answer(report=report)
        if isinstance(command, UploadAction):
            self._steer_upload(command.action)
            return Answer()
        run = self._workplace.own_run
        if run is None or run.id != command.run or not run.alive:
            return Answer(problem=f"The run {command.run} has ended.")
        log.info("Another process asks: %s", type(command).__name__)
        _steer(run, command)
        return Answer()

    def _steer_upload(self, action: str) -> None:
        upload = self._workplace.own_upload
        if upload is None or not upload.alive:
            raise ControlError("The upload has ended.")
        actions = {"pause": upload.pause, "resume": upload.resume, "cancel": upload.cancel}
        if action not in actions:
            raise ControlError(f"An upload cannot {action!r}.")
        actions[action]()

    def _report(self) -> Report:
        place = self._workplace
        profile, run, upload = place.profile, place.own_run, place.own_upload
        if profile is None:
            return Report(pid=os.getpid())
        return Report(
            pid=os.getpid(),
            region=profile.region,
            bucket=profile.bucket,
            dataset_prefix=profile.dataset_prefix,
            checkpoint_prefix=profile.checkpoint_prefix,
            run=run.id if run is not None and run.alive else "",
            upload=None if upload is None else _upload_report(upload),
        )


def _upload_report(upload: UploadJob) -> UploadReport:
    return UploadReport(source=str(upload.settings.source), progress=upload.progress(), summary=upload.summary())


def _steer(run: TrainingRun, command: RunCommand) -> None:
    if isinstance(command, Pause):
        run.pause()
    elif isinstance(command, Resume):
        run.resume()
    elif isinstance(command, Stop):
        run.stop()
    elif isinstance(command, SaveCheckpoint):
        run.checkpoint()
    elif isinstance(command, Switch):
        run.switch(command.endpoint, command.reason)
    else:
        run.set_lr(command.lr)


def ask(pid: int, command: Command) -> Answer:
    """Sends a command to a process and gives its answer. Raises ControlError, after two seconds of silence too."""
    try:
        with _folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as called:
            called.settimeout(_TIMEOUT_S)
            called.connect(_address(folder, f"{pid}{_SUFFIX}"))
            if not _is_ours(called):
                raise ControlError(f"Process {pid} belongs to another user.")
            called.sendall(msgspec.json.encode(command) + b"\n")
            answer: Answer = decode_json(_read_line(called), Answer)
    except (OSError, msgspec.DecodeError) as error:
        reason = "it does not answer" if isinstance(error, TimeoutError) else "it is gone"
        raise ControlError(
            f"Process {pid} cannot be asked: {reason}.", remedy="`ossconsole status` shows what there is."
        ) from error
    if answer.problem:
        raise ControlError(answer.problem, remedy=answer.remedy)
    return answer


def peers() -> Iterator[Report]:
    """What the other processes of this user work on, as far as they answer; sockets that were left are removed."""
    _remove_sockets_of_the_dead()
    for path in sorted(control_dir().glob(f"*{_SUFFIX}")):
        if not path.stem.isdigit() or int(path.stem) == os.getpid():
            continue
        try:
            report = ask(int(path.stem), Look()).report
        except ControlError:
            continue
        if report is not None:
            yield report


def _remove_sockets_of_the_dead() -> None:
    """A process that was killed leaves its socket."""
    for path in control_dir().glob(f"*{_SUFFIX}"):
        if path.stem.isdigit() and not Path("/proc", path.stem).exists():
            with contextlib.suppress(OSError):  # of a folder that cannot be written
                path.unlink(missing_ok=True)


def control_dir() -> Path:
    """The folder of the sockets; it may be missing."""
    return state_dir() / "control"


@contextlib.contextmanager
def _folder() -> Iterator[int]:
    descriptor = os.open(control_dir(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _address(folder: int, name: str) -> str:
    """A socket's path through an open folder: the path itself may be longer than the 107 bytes a socket takes."""
    return f"/proc/self/fd/{folder}/{name}"


def _is_ours(other: socket.socket) -> bool:
    """Whether the other side is of this user, or root's."""
    credentials = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in {0, os.geteuid()}


def _read_line(connection: socket.socket) -> bytes:
    """The first line. Raises OSError where it is longer than any of ours, or the other side is slow."""
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(1 << 16)
        if not part:
            break
        line += part
        if len(line) > _LONGEST_LINE:
            raise OSError("a line without an end")
    return line
