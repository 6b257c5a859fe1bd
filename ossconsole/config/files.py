"""Our own files and folders: their paths, and private, atomic, non-blocking access to them.

Functions that return a path do not create it; `make_folder` creates a folder.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import json
import os
import shlex
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import platformdirs

from ossconsole.config.errors import SettingsError

CONFIG_DIR_VARIABLE = "OSSCONSOLE_CONFIG_DIR"
STATE_DIR_VARIABLE = "OSSCONSOLE_STATE_DIR"
_APP = "ossconsole"


def config_dir() -> Path:
    """The folder of profiles and connector configuration; it may be missing. Raises SettingsError without a home."""
    return _own_folder(CONFIG_DIR_VARIABLE, platformdirs.user_config_path)


def state_dir() -> Path:
    """The folder of run records, journals, logs and the sandbox's objects; as `config_dir`."""
    return _own_folder(STATE_DIR_VARIABLE, platformdirs.user_state_path)


def _own_folder(variable: str, default: Callable[[str], Path]) -> Path:
    try:
        folder = typed_path(os.environ.get(variable) or default(_APP))
    except RuntimeError:  # of platformdirs; its older versions leave the ~ in the path
        folder = Path("~")
    if folder.parts[:1] == ("~",):
        raise SettingsError(
            "This user has no home folder.", remedy=f"Set HOME, or {CONFIG_DIR_VARIABLE} and {STATE_DIR_VARIABLE}."
        )
    return folder.absolute()


def logs_dir() -> Path:
    """The folder of the logs, ours and the connector's; it may be missing."""
    return state_dir() / "logs"


def native_log_path() -> Path:
    """The log of what native libraries and child processes print, the ranks of a run among them."""
    return logs_dir() / "native.log"


def short_path(path: Path | str) -> str:
    """The path for the screen, with `~` for the home folder."""
    text, home = str(path), str(typed_path("~"))
    return "~" + text[len(home) :] if text == home or text.startswith(home + os.sep) else text


def exposed_folders() -> Iterator[str]:
    """A warning for each of the two folders that is writable for another user of the machine."""
    for name, folder, variable in (
        ("settings", config_dir(), CONFIG_DIR_VARIABLE),
        ("state", state_dir(), STATE_DIR_VARIABLE),
    ):
        problem = exposure(folder)
        if problem:
            yield (
                f"The {name} folder {folder} {problem}: other users can replace the files in it. "
                f"Make it private (chmod 700 {folder}), or set {variable} to another folder."
            )


def exposure(folder: Path) -> str:
    """Why `folder` is writable for other users; "" where it is not, or does not exist."""
    try:
        status = folder.stat()
    except OSError:  # the code that uses the folder reports this
        return ""
    if status.st_uid not in {0, os.geteuid()}:
        return f"belongs to another user (uid {status.st_uid})"
    mode = stat.S_IMODE(status.st_mode)
    return f"is writable for all users (mode {mode:04o})" if mode & stat.S_IWOTH else ""


def typed_path(text: Path | str) -> Path:
    """A path as a user types it, with `~` for a home folder; that of an unknown user stays as it is."""
    # Not Path.expanduser, which raises without a home folder: a later error message then names the path.
    return Path(os.path.expanduser(text))  # noqa: PTH111


def working_folder() -> Path:
    """The working directory, or the home folder where it was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return typed_path("~")


def is_folder(path: Path) -> bool:
    """Whether it is a folder, or a link to one; False where this user may not find out."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises PermissionError, or for a name that is too long


APPEND = os.O_WRONLY | os.O_APPEND
READ_WRITE = os.O_RDWR
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The errors of a write for which there is no space."""
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def make_folder(path: Path) -> Path:
    """Creates a folder and its missing parents, each with mode 0700, and returns it.

    All folders of the console are created here. Raises SettingsError.
    """
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"The folder {path} cannot be created: {reason(error)}.", remedy=write_remedy(path, error)
        ) from error
    return path


def open_private(path: Path, flags: int = APPEND) -> int:
    """Opens one of our files with mode 0600, created with its folder where it is missing; returns the descriptor.

    Refuses anything but a regular file, symbolic links too, without blocking. Raises SettingsError.
    """
    make_folder(path.parent)
    safe = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags | safe, 0o600)
        try:
            if _regular_mode(descriptor) & 0o077:
                os.fchmod(descriptor, 0o600)
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        raise unwritable(path, error) from error
    return descriptor


def try_lock(descriptor: int, operation: int = fcntl.LOCK_EX) -> bool:
    """Takes a `flock` lock without blocking; False where another process holds it. It ends with the descriptor."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_private(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replaces `path` with `data` atomically; the file never has another mode than `mode`. Raises SettingsError.

    A symbolic link is followed, so that its target is replaced. Missing folders are created with mode 0700.
    """
    temporary: str | None = None
    try:
        target = path.resolve()
        make_folder(target.parent)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # with mode 0600
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
        temporary = None
    except (OSError, RuntimeError) as error:  # RuntimeError: resolve() on a loop of links, before Python 3.13
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()


def open_regular(path: Path) -> int:
    """Opens a regular file for reading; returns the descriptor. Raises OSError for anything else, without blocking."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _regular_mode(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_private(path: Path) -> bytes | None:
    """The file's bytes, None where it does not exist. Raises SettingsError, without blocking on a fifo."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {reason(error)}.", remedy=_read_remedy(path, error)) from error


def read_text(path: Path) -> str | None:
    """The file's text without byte order mark, None where it does not exist. Raises SettingsError."""
    data = read_private(path)
    if data is None:
        return None
    if data.startswith(_WIDE_MARKS) or b"\0" in data:
        remedy = "Save it as UTF-8 with an editor, or convert it: iconv -f UTF-16 -t UTF-8 FILE"
        raise SettingsError(f"{path} is UTF-16 text, or binary.", remedy=remedy)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text: {error.reason}.", remedy="Save it as UTF-8.") from error


def private_database(path: Path) -> Path:
    """Creates an SQLite file with mode 0600, corrects its side files, and returns its path.

    Call it before SQLite opens the file: new side files get its mode. Raises SettingsError.
    """
    os.close(open_private(path, READ_WRITE))
    for beside in _beside(path):
        os.close(open_private(beside, READ_WRITE))
    return path


def is_damage(error: BaseException | None) -> bool:
    """Whether SQLite reports a damaged file, as opposed to a full disk or a lock."""
    return type(error) is sqlite3.DatabaseError or isinstance(error, UnicodeDecodeError)  # not a subclass


def set_aside(path: Path) -> Path:
    """Renames a damaged state file, with SQLite's side files; returns the new path.

    Raises SettingsError.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}-{os.getpid()}")
    try:
        for beside in _beside(path):
            beside.rename(aside.with_name(aside.name + beside.name.removeprefix(path.name)))
        return path.rename(aside)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError | RuntimeError) -> SettingsError:
    """The error of one of our files that cannot be written, with reason and remedy."""
    return SettingsError(f"{path} cannot be written: {reason(error)}.", remedy=write_remedy(path, error))


def reason(error: BaseException) -> str:
    """The text of a system error."""
    known = getattr(error, "errno", None)
    if known == errno.ELOOP or isinstance(error, RuntimeError):
        return "it is a symbolic link (or a loop of them)"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def write_remedy(path: Path, error: BaseException) -> str:
    """The remedy where `path`, one of our files or folders, cannot be created or written."""
    bases = {STATE_DIR_VARIABLE: state_dir(), CONFIG_DIR_VARIABLE: config_dir()}
    variable = next((name for name, base in bases.items() if base in {path, *path.parents}), "")
    elsewhere = f"set {variable} to a folder" if variable else "select a folder"
    known = getattr(error, "errno", None)
    if known in FULL:
        return f"Free space on its disk, or {elsewhere} on another disk."
    if known in _IN_THE_WAY or isinstance(error, RuntimeError):
        return f"Move the file in its place away, or {elsewhere} elsewhere."
    return f"Make it writable, or {elsewhere} that is writable for you."


def _read_remedy(path: Path, error: OSError) -> str:
    name, aside = shlex.quote(str(path)), shlex.quote(f"{path}.old")
    if error.errno == errno.ENOTDIR:
        return write_remedy(path, error)
    return f"Move it away: mv {name} {aside}" if error.errno in _IN_THE_WAY else f"Make it readable: chmod u+r {name}"


def _beside(database: Path) -> list[Path]:
    """SQLite's existing side files of a database."""
    found = (database.with_name(database.name + suffix) for suffix in ("-wal", "-shm", "-journal"))
    return [path for path in found if os.path.lexists(path)]


def _regular_mode(descriptor: int) -> int:
    """The permission bits of a regular file. Raises OSError for anything else."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return stat.S_IMODE(mode)
    kind = "a folder" if stat.S_ISDIR(mode) else "a fifo" if stat.S_ISFIFO(mode) else "a device"
    raise OSError(errno.ENXIO, f"it is {kind}, not a file")


T = TypeVar("T")


def encode_json(value: object) -> bytes:
    """`value` as a JSON document that `decode_json` can read: bytes of a file name that are not UTF-8 become "?"."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # such names have lone surrogates, which JSON cannot represent
        text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
        return msgspec.json.encode(json.loads(text.encode(errors="replace")))


def decode_json(data: bytes | str, kind: type[T] | Any = Any) -> T:
    """The document as `kind`. Raises msgspec.DecodeError, also for nesting that exceeds msgspec's own limit."""
    try:
        found: T = msgspec.json.decode(data, type=kind)
    except (RecursionError, UnicodeDecodeError) as error:
        raise msgspec.DecodeError("it is nested too deeply, or is not UTF-8 text") from error
    return found
