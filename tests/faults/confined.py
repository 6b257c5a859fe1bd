"""`python -m tests.faults.confined CONDITION FOLDER ARGUMENTS...` runs `ossconsole ARGUMENTS` where FOLDER is unusable.

What it mounts is seen by that process and its children alone, and goes with them.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

MISSING, READ_ONLY, FOREIGN, FULL, IN_THE_WAY = "missing", "read-only", "foreign-owned", "full", "in the way"
CONDITIONS = (MISSING, READ_ONLY, FOREIGN, FULL, IN_THE_WAY)
"""`read-only` is a file system, `foreign-owned` belongs to another user, and `in the way` is a file in its place."""

_NOBODY = 65534
_CLONE_NEWNS = 0x20000  # linux/sched.h
_PR_CAPBSET_DROP = 24  # linux/prctl.h
# chown, dac_override, dac_read_search, fowner: what lets root do as if every file were its own.
_CAPABILITIES = (0, 1, 2, 3)
_FULL_BYTES = 256 << 10


def is_possible() -> bool:
    """Whether this user may mount file systems and give files to others."""
    if os.geteuid() != 0:
        return False
    probe = [sys.executable, "-c", "from tests.faults.confined import own_mounts; own_mounts()"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def own_mounts() -> None:
    """From now on this process has mounts of its own. Raises OSError where it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    _run("mount", "--make-rprivate", "/")


def confine(condition: str, folder: Path) -> None:
    """Makes the folder, which is there, as unusable as the condition says."""
    if condition == READ_ONLY:
        _run("mount", "--bind", str(folder), str(folder))
        _run("mount", "-o", "remount,bind,ro", str(folder))
    elif condition == FULL:
        kept = [(path, path.read_bytes()) for path in folder.rglob("*") if path.is_file()]
        _run("mount", "-t", "tmpfs", "-o", f"size={_FULL_BYTES},mode=700", "tmpfs", str(folder))
        for path, data in kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        with (folder / "filling").open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
    elif condition == FOREIGN:
        libc = ctypes.CDLL(None)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.chown(path, _NOBODY, _NOBODY)
        for capability in _CAPABILITIES:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    condition, folder, *arguments = sys.argv[1:]
    own_mounts()
    confine(condition, Path(folder))
    os.execv(sys.executable, [sys.executable, "-m", "ossconsole", *arguments])


if __name__ == "__main__":
    main()
