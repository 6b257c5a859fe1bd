"""The bytes of a sample: sizes, order and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import SampleFormat, decode, encode, sample_bytes


def test_the_tutorials_object_size() -> None:
    assert sample_bytes(SampleFormat.TENSOR_F32, 224, 224) == 602_112
    assert sample_bytes(SampleFormat.IMAGE_U8, 224, 224) * 4 == 602_112


@pytest.mark.parametrize("fmt", [SampleFormat.IMAGE_U8, SampleFormat.TENSOR_F32])
def test_a_sample_comes_back_as_it_went(fmt: SampleFormat) -> None:
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5).astype(fmt.dtype)
    data = encode(fmt, array)
    assert len(data) == sample_bytes(fmt, 4, 5)
    assert (decode(fmt, data, 4, 5) == array).all()


def test_bytes_are_channel_after_channel() -> None:
    array = np.zeros((3, 2, 2), dtype=np.uint8)
    array[1] = 7
    assert encode(SampleFormat.IMAGE_U8, array.transpose(0, 2, 1)) == bytes([0] * 4 + [7] * 4 + [0] * 4)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2, 2), np.float32), np.zeros((3, 4), np.uint8)]
)
def test_another_shape_or_type_is_refused(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    with pytest.raises(ConsoleError):
        encode(SampleFormat.IMAGE_U8, array)


def test_another_length_is_refused() -> None:
    with pytest.raises(ConsoleError, match="48 bytes, not 47"):
        decode(SampleFormat.IMAGE_U8, bytes(47), 4, 4)
