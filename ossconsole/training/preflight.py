"""What can be said of a run before it starts: whether its libraries load and its settings fit this machine.

`python -m ossconsole.training.preflight` imports what training needs and reports in one JSON line.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec

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
        from ossconsole.training.compute.device import amp_dtype, choose_device
    except ImportError as error:
        raise broken_library(error) from error
    amp_dtype(precision, choose_device())


class TorchReport(msgspec.Struct, frozen=True, kw_only=True):
    """`problem` names the first library that does not work, and why; what came before it is filled in.

    `cuda_built` is the CUDA version torch was built for, "" for a build without.
    """

    torch: str = ""
    torchvision: str = ""
    connector: str = ""
    cuda_built: str = ""
    cuda_available: bool = False
    devices: tuple[str, ...] = ()
    problem: str = ""


def look() -> TorchReport:
    """Imports torch, torchvision and the connector in this process."""
    report = TorchReport()
    try:
        import torch

        report = msgspec.structs.replace(
            report,
            torch=str(torch.__version__),
            cuda_built=torch.version.cuda or "",
            cuda_available=torch.cuda.is_available(),
        )
        if report.cuda_available:
            names = tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
            report = msgspec.structs.replace(report, devices=names)
        import torchvision

        report = msgspec.structs.replace(report, torchvision=str(torchvision.__version__))
        torch.ops.torchvision.nms  # noqa: B018 - a build that does not fit this torch has no operators
        import osstorchconnector  # noqa: F401 - its native library loads now or never

        return msgspec.structs.replace(report, connector=version("osstorchconnector"))
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return msgspec.structs.replace(report, problem=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(look()) + b"\n")
