"""Starting Python processes so that they import nothing from the current folder."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import util

_FLAG = "-P" if sys.version_info >= (3, 11) else "-I"
"""Python 3.10 has no -P. Its -I also ignores the PYTHON variables of the environment.

The path for imports comes from the parent in any case.
"""

_FLAGS_FUNCTION = "_args_from_interpreter_flags"
"""Of multiprocessing.util, for all that it spawns. Not public, and the same since Python 3.4."""

_RUN_MODULE = """\
import sys
sys.path = [folder for folder in sys.path if folder]
del sys.argv[0]
import runpy
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)"""

_changing = threading.RLock()


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module as `python -m` does, which would import a grp.py of the current folder."""
    flags = ("-P", "-m") if sys.version_info >= (3, 11) else ("-c", _RUN_MODULE)
    return [sys.executable, *flags, module, *arguments]


@contextmanager
def safe_path() -> Iterator[None]:
    """Processes that multiprocessing spawns within do not import from the current folder while they start.

    They run `python -c`, which puts that folder first on the path: a file such as random.py or signal.py in it would be
    imported in place of Python's own. Later they have the path of their parent. The environment is not changed: other
    threads may read it.
    """
    with _changing:
        flags: Callable[[], list[str]] = getattr(util, _FLAGS_FUNCTION)

        def safe_flags() -> list[str]:
            found = flags()
            return found if _FLAG in found else [*found, _FLAG]

        setattr(util, _FLAGS_FUNCTION, safe_flags)
        try:
            yield
        finally:
            setattr(util, _FLAGS_FUNCTION, flags)
