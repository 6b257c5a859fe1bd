"""`python -m ossconsole.training.selfcheck`: imports what training needs, and says in one JSON line how that went."""

from __future__ import annotations

import sys
from importlib.metadata import version

import msgspec


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
