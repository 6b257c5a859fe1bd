"""The bytes of files that torch writes."""

from __future__ import annotations

import io
from typing import Any

import torch


def torch_bytes(value: object, **options: Any) -> bytes:
    """`value` as `torch.save` writes it with `options`."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()
