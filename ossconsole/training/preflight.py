"""What can be said of a run before it starts: whether its libraries are there and its settings can work here.

No torch here at import: the console's event loop calls this too.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ossconsole.config.errors import ConsoleError, SettingsError

_LIBRARIES = ("torch", "torchvision", "osstorchconnector")
WEIGHTS_REMEDY = "Give --weights none, imagenet, a file, or oss://bucket/key."


class MissingLibraryError(ConsoleError):
    """A library that training needs is not installed, or does not load."""


def check_libraries() -> None:
    """Raises MissingLibraryError where one that training needs is not installed; loads none, so it takes no time."""
    missing = [name for name in _LIBRARIES if not _is_installed(name)]
    if missing:
        raise missing_library(*missing)


def missing_library(*names: str) -> MissingLibraryError:
    return MissingLibraryError(
        f"Training needs {' and '.join(names)}, which {'is' if len(names) == 1 else 'are'} not installed: "
        f"pip install {' '.join(names)}"
    )


def broken_library(error: ImportError) -> MissingLibraryError:
    """The error for a library that is there and cannot be loaded, or that one of those needs."""
    if isinstance(error, ModuleNotFoundError) and error.name in _LIBRARIES:
        return missing_library(error.name)
    return MissingLibraryError(
        f"A library that training needs does not load ({error.name or 'no name'}): `ossconsole doctor` tells more."
    )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def check_weights(weights: str) -> None:
    """Raises SettingsError where `weights` names a file that cannot be read. See `TrainSettings.weights`."""
    if weights in {"none", "imagenet"} or weights.startswith("oss://"):
        return
    path = Path(weights).expanduser()
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        problem = "does not exist"
    except IsADirectoryError:
        problem = "is a folder"
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or 'it is no path'}"
    raise SettingsError(f"The weights file {path} {problem}.", remedy=WEIGHTS_REMEDY)


def check_precision(precision: str) -> None:
    """Raises SettingsError where the device cannot compute in it. Loads torch where that has to be asked."""
    if precision != "fp16":  # the others work on every device
        return
    check_libraries()
    try:
        from ossconsole.training.compute import amp_dtype, choose_device
    except ImportError as error:
        raise broken_library(error) from error
    amp_dtype(precision, choose_device())
