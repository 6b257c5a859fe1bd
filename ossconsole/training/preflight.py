"""Checks before a run starts: whether its libraries load, and whether this machine has its GPU and precision.

`python -m ossconsole.training.preflight` imports what training needs and reports in one JSON line.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import version

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.training.settings import AUTO, TrainSettings

_LIBRARIES = ("torch", "torchvision", "osstorchconnector")


class MissingLibraryError(ConsoleError):
    """A library that training needs is not installed or cannot be imported."""


def check_libraries() -> None:
    """Raises MissingLibraryError when a library is not installed. Imports none of them, so it is fast."""
    missing = [name for name in _LIBRARIES if not _is_installed(name)]
    if missing:
        raise missing_library(*missing)


def missing_library(*names: str) -> MissingLibraryError:
    """The error for libraries that are not installed."""
    return MissingLibraryError(
        f"Training needs {' and '.join(names)}, which {'is' if len(names) == 1 else 'are'} not installed: "
        f"pip install {' '.join(names)}"
    )


def broken_library(error: ImportError) -> MissingLibraryError:
    """The error for an installed library, or one of its dependencies, that cannot be imported."""
    if isinstance(error, ModuleNotFoundError) and error.name in _LIBRARIES:
        return missing_library(error.name)
    return MissingLibraryError(
        f"A library that training needs cannot be imported ({error.name or 'no name'}): run `ossconsole doctor`."
    )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def check_device(settings: TrainSettings) -> None:
    """Raises ConsoleError when the selected GPU does not exist, or the device does not support the precision.

    Imports torch for --gpu and fp16 only: the other precisions work on every device.
    """
    if settings.precision != "fp16" and settings.gpu == AUTO:
        return
    check_libraries()
    try:
        from ossconsole.training.compute.device import amp_dtype
        from ossconsole.training.compute.selection import select_device
    except ImportError as error:
        raise broken_library(error) from error
    amp_dtype(settings.precision, select_device(settings))


class TorchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The versions of the libraries. `problem` names the first one that fails, and why; fields before it are set.

    `cuda_built` is the CUDA version of torch's build, "" for a CPU build.
    """

    torch: str = ""
    torchvision: str = ""
    connector: str = ""
    cuda_built: str = ""
    cuda_available: bool = False
    devices: tuple[str, ...] = ()
    problem: str = ""


def inspect_libraries() -> TorchReport:
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
        torch.ops.torchvision.nms  # noqa: B018 - a build for another torch has no operators
        import osstorchconnector  # noqa: F401 - loads its native library

        return msgspec.structs.replace(report, connector=version("osstorchconnector"))
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return msgspec.structs.replace(report, problem=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(inspect_libraries()) + b"\n")
