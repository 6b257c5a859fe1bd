"""Terminal console for training on a cloud GPU with data in Alibaba Cloud OSS, read through an OSS accelerator.

For training scripts, `watch`, `OssImages` and `OssCheckpoints` are the public API. They load on first use, so that
importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["OssCheckpoints", "OssImages", "Watch", "__version__", "watch"]
__version__ = "0.1.0"

_MODULES = {
    "OssCheckpoints": "ossconsole.api.checkpoints",
    "OssImages": "ossconsole.api.images",
    "Watch": "ossconsole.api.watch",
    "watch": "ossconsole.api.watch",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
