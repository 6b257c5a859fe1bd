"""The NVIDIA driver's versions."""

from __future__ import annotations

import msgspec


class Driver(msgspec.Struct, frozen=True):
    """The driver's own version, and the newest CUDA version it can run, such as (12, 4)."""

    version: str
    cuda: tuple[int, int]


def read_driver() -> Driver | None:
    """None where there is no working driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())  # 1000 x major + 10 x minor
        return Driver(version.decode() if isinstance(version, bytes) else version, (cuda // 1000, cuda % 1000 // 10))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
