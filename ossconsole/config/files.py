"""Our own files and folders: their paths, and private, atomic, non-blocking access to them.

Paths are only computed; `make_folder` creates a folder.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import shlex
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import platformdirs

from ossconsole.config.errors import SettingsError

CONFIG_DIR_VARIABLE = "OSSCONSOLE_CONFIG_DIR"
STATE_DIR_VARIABLE = "OSSCONSOLE_STATE_DIR"
_APP = "ossconsole"


def config_dir() -> Path:
    """The folder of profiles and connector configuration; it may be missing."""
    return _absolute(os.environ.get(CONFIG_DIR_VARIABLE) or platformdirs.user_config_path(_APP))


def state_dir() -> Path:
    """The folder of run records, journals, logs and the sandbox's objects; it may be missing."""
    return _absolute(os.environ.get(STATE_DIR_VARIABLE) or platformdirs.user_state_path(_APP))


def logs_dir() -> Path:
    """The folder of the logs, ours and the connector's; it may be missing."""
    return state_dir() / "logs"


def short_path(path: Path | str) -> str:
    """The path with `~` for the home folder, as it is shown."""
    text, home = str(path), str(Path.home())
    return "~" + text[len(home) :] if text == home or text.startswith(home + os.sep) else text


def exposed_folders() -> Iterator[str]:
    """A warning for each of the two folders that another user of the machine can write to."""
    for name, folder, variable in (
        ("settings", config_dir(), CONFIG_DIR_VARIABLE),
        ("state", state_dir(), STATE_DIR_VARIABLE),
    ):
        problem = exposure(folder)
        if problem:
            yield (
                f"The {name} folder {folder} {problem}: others can replace the files in it. "
                f"Make it private (chmod 700 {folder}), or set {variable} to another folder."
            )


def exposure(folder: Path) -> str:
    """Why users other than this one can write to `folder`; "" when none can, or it does not exist."""
    try:
        status = folder.stat()
    except OSError:  # the code that uses the folder reports this
        return ""
    if status.st_uid not in {0, os.geteuid()}:
        return f"belongs to another user (uid {status.st_uid})"
    mode = stat.S_IMODE(status.st_mode)
    return f"is writable for everybody (mode {mode:04o})" if mode & stat.S_IWOTH else ""


def _absolute(path: Path | str) -> Path:
    # Not Path.expanduser: without a home folder that raises, and the path is then at least named in the message.
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111


APPEND = os.O_WRONLY | os.O_APPEND
READ_WRITE = os.O_RDWR
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def make_folder(path: Path) -> Path:
    """Makes a folder and those above it where they are missing, each private to the user (0700), and gives it.

    Every folder of the console is made here. Raises SettingsError with path, reason and remedy.
    """
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"The folder {path} cannot be made: {reason(error)}.", remedy=write_remedy(path, error)
        ) from error
    return path


def open_private(path: Path, flags: int = APPEND) -> int:
    """A descriptor of one of our files, which is made with its folder where it is missing, and has mode 0600.

    Only regular files are opened: anything else, a link too, is refused at once. Raises SettingsError.
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


def write_private(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replaces `path` with `data` in one step; the file has `mode` from its first moment. Raises SettingsError.

    A symbolic link is followed, so that a file kept elsewhere stays there. Missing folders are made with 0700.
    """
    temporary: str | None = None
    try:
        target = path.resolve()
        make_folder(target.parent)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # 0600 by its contract
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
    """A descriptor to read a regular file from; anything else, such as a fifo, is refused at once. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _regular_mode(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_private(path: Path) -> bytes | None:
    """The file's bytes, None where there is none. Raises SettingsError, at once for what is not a regular file."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {reason(error)}.", remedy=_read_remedy(path, error)) from error


def read_text(path: Path) -> str | None:
    """The file's text, None where there is none; a byte order mark is left out. Raises SettingsError."""
    data = read_private(path)
    if data is None:
        return None
    if data.startswith(_WIDE_MARKS) or b"\0" in data:
        raise SettingsError(f"{path} is UTF-16 text, or binary.", remedy="Save it as UTF-8: iconv -f UTF-16 -t UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text: {error.reason}.", remedy="Save it as UTF-8.") from error


def private_database(path: Path) -> Path:
    """Makes an SQLite file and what SQLite keeps beside it readable for this user alone, and gives its path.

    To be called before SQLite opens it: the files that it makes get the mode of this one. Raises SettingsError.
    """
    os.close(open_private(path, READ_WRITE))
    for beside in _beside(path):
        os.close(open_private(beside, READ_WRITE))
    return path


def is_damage(error: BaseException | None) -> bool:
    """Whether SQLite says that its file is not what it was, rather than that something is short or in use."""
    return type(error) is sqlite3.DatabaseError or isinstance(error, UnicodeDecodeError)  # not of its subclasses


def set_aside(path: Path) -> Path:
    """Renames a state file that cannot be used, with what SQLite keeps beside it; gives the new path, where it is kept.

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
    """The error of one of our files that cannot be written, with the reason and what helps."""
    return SettingsError(f"{path} cannot be written: {reason(error)}.", remedy=write_remedy(path, error))


def reason(error: BaseException) -> str:
    """Why the system refused."""
    known = getattr(error, "errno", None)
    if known == errno.ELOOP or isinstance(error, RuntimeError):
        return "it is a symbolic link (or a loop of them)"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def write_remedy(path: Path, error: BaseException) -> str:
    """What helps where `path`, one of our files or folders, cannot be made or written."""
    bases = {STATE_DIR_VARIABLE: state_dir(), CONFIG_DIR_VARIABLE: config_dir()}
    variable = next((name for name, base in bases.items() if base in {path, *path.parents}), "")
    elsewhere = f"set {variable} to a folder" if variable else "choose a folder"
    known = getattr(error, "errno", None)
    if known in _FULL:
        return f"Free space on its disk, or {elsewhere} on another disk."
    if known in _IN_THE_WAY or isinstance(error, RuntimeError):
        return f"Move away what is in its place, or {elsewhere} elsewhere."
    return f"Make it writable for you, or {elsewhere} that you can write to."


def _read_remedy(path: Path, error: OSError) -> str:
    name, aside = shlex.quote(str(path)), shlex.quote(f"{path}.old")
    if error.errno == errno.ENOTDIR:
        return write_remedy(path, error)
    return f"Move it away: mv {name} {aside}" if error.errno in _IN_THE_WAY else f"Make it readable: chmod u+r {name}"


def _beside(database: Path) -> list[Path]:
    """The files that SQLite has beside a database, if any."""
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


def decode_json(data: bytes | str, kind: type[T] | Any = Any) -> T:
    """The document as `kind`. Raises msgspec.DecodeError, also for nesting that msgspec itself runs out of stack on."""
    try:
        found: T = msgspec.json.decode(data, type=kind)
    except (RecursionError, UnicodeDecodeError) as error:
        raise msgspec.DecodeError("it is nested too deeply, or is not UTF-8 text") from error
    return found
