"""Sample formats: the layout of a stored sample's bytes."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from ossconsole.config.errors import ConsoleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHANNELS = 3
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's training images per channel (R, G, B), for values in 0..1.

Source: torchvision.transforms.Normalize as in pytorch/examples/imagenet/main.py; the tutorial uses the same.
"""


class SampleFormat(str, enum.Enum):
    """How a sample is stored.

    `image-jpeg` is an encoded image: a JPEG, or any image file that was kept as it is. `image-u8` is uint8 before
    normalisation, `tensor-f32` the tutorial's float32 after crop, flip and normalisation; both are bare bytes in CHW
    order, channels R, G, B. Readers decode, crop and flip all but `tensor-f32` in every epoch.
    """

    IMAGE_JPEG = "image-jpeg"
    IMAGE_U8 = "image-u8"
    TENSOR_F32 = "tensor-f32"

    @property
    def suffix(self) -> str:
        """The ending of a sample's key."""
        return {SampleFormat.IMAGE_JPEG: ".jpg", SampleFormat.IMAGE_U8: ".u8", SampleFormat.TENSOR_F32: ".pt"}[self]

    @property
    def encoded(self) -> bool:
        """Whether the size in bytes depends on the content of the image."""
        return self is SampleFormat.IMAGE_JPEG

    @property
    def default_size(self) -> int:
        """The size in pixels of an upload that sets none: of the short side of `image-jpeg`, or of a square."""
        return 256 if self is SampleFormat.IMAGE_JPEG else 224

    def at_size(self, size: int) -> str:
        """The format of a dataset with its size, for people: `image-u8 at 224 px`. The size 0 is unknown."""
        return f"{self} at {size} px" if size else f"{self} of various sizes"

    @property
    def itemsize(self) -> int:
        """Bytes per value; of `image-jpeg` once it is decoded."""
        return 4 if self is SampleFormat.TENSOR_F32 else 1

    @property
    def dtype(self) -> str:
        """The numpy dtype of a value, of `image-jpeg` once it is decoded; always little-endian."""
        return "<f4" if self is SampleFormat.TENSOR_F32 else "|u1"

    def __str__(self) -> str:
        return self.value


def sample_bytes(fmt: SampleFormat, height: int, width: int) -> int:
    """Bytes of one sample of `height` x `width` pixels (602,112 for tensor-f32 at 224 px).

    Raises ValueError for an encoded format.
    """
    if fmt.encoded:
        raise ValueError(f"the bytes of {fmt} depend on the image")
    return CHANNELS * height * width * fmt.itemsize


def encode(fmt: SampleFormat, array: NDArray[np.generic]) -> bytes:
    """The bytes of a (3, height, width) array. Raises ConsoleError when shape or dtype is not the format's."""
    import numpy as np

    if array.ndim != 3 or array.shape[0] != CHANNELS or array.dtype != np.dtype(fmt.dtype):
        raise ConsoleError(f"A {fmt} sample is a (3, height, width) array, not {array.dtype} {array.shape}.")
    return np.ascontiguousarray(array).tobytes()


def decode(fmt: SampleFormat, data: bytes, height: int, width: int) -> NDArray[Any]:
    """The (3, height, width) array in `data`, read-only and without a copy: uint8, or float32 for tensor-f32.

    Raises ConsoleError on a wrong length.
    """
    import numpy as np

    expected = sample_bytes(fmt, height, width)
    if len(data) != expected:
        raise ConsoleError(
            f"A {fmt} sample of {height} x {width} px has {expected} bytes, not {len(data)}.",
            remedy="Upload the dataset again.",
        )
    return np.frombuffer(data, dtype=fmt.dtype).reshape(CHANNELS, height, width)
