"""What JPEGs would give a run that waits for the bytes of larger samples. Every figure here is an estimate."""

from __future__ import annotations

import math

import msgspec

JPEG = "image-jpeg"

JPEG_BYTES = 27_700
"""Bytes of a JPEG of quality 90 with a short side of 256 px: the mean of photographs. They grow with the area."""

IMAGES_PER_CORE = 1_063
"""Such JPEGs that one core decodes, crops and resizes to 224 px per second: the least seen, on a slow shared core."""

MIN_GAIN = 1.1
"""With a smaller ratio another format is not worth an upload."""

MAX_WAIT = 0.98
"""The data wait that a gain is computed from at most: one beyond 50x says nothing more."""

_SHORT_SIDE = 256  # px, of the figures above; also the default of an upload
_MARGIN = 8 / 7  # training images of 224 px are cut from images of 256 px
_BYTES_PER_PIXEL = {"tensor-f32": 12, "image-u8": 3}


class FormatGain(msgspec.Struct, frozen=True, kw_only=True):
    """What `format` would give a run: at most `ratio` times its samples/s. All but `bytes_now` are estimates.

    `bytes_now` and `bytes_then` are those of a sample, before and after. `short_side` is that of the images, in pixels.
    `limit` is what limits the run then: "bytes", "compute", "decoding" or "requests". Decoding needs `cores`.
    """

    format: str
    bytes_now: float
    bytes_then: float
    short_side: int
    ratio: float
    limit: str
    cores: int
    words: str


def is_larger(sample_format: str) -> bool:
    """Whether samples of this format have more bytes than JPEGs."""
    return sample_format in _BYTES_PER_PIXEL


def jpeg_gain(
    sample_format: str,
    bytes_per_sample: float,
    samples_per_s: float,
    wait_fraction: float,
    *,
    workers: int,
    cores: int,
    most_samples_per_s: float = math.inf,
) -> FormatGain | None:
    """What JPEGs would give a run at `samples_per_s` that only the bytes per second limit.

    Their short side is 8/7 of the side of the samples. The ratio is at most that of the bytes, what ends the wait for
    data, what `cores` (0: unknown) decode at IMAGES_PER_CORE, and what the requests per second allow
    (`most_samples_per_s`). `workers` is the number of readers. None for a format whose samples are not larger, and
    where the gain is not worth an upload.
    """
    if not is_larger(sample_format) or bytes_per_sample <= 0 or samples_per_s <= 0:
        return None
    short_side = round(math.sqrt(bytes_per_sample / _BYTES_PER_PIXEL[sample_format]) * _MARGIN)
    area = (short_side / _SHORT_SIDE) ** 2
    bytes_then, per_core = JPEG_BYTES * area, IMAGES_PER_CORE / area
    limits = {
        "bytes": bytes_per_sample / bytes_then,
        "compute": 1 / (1 - min(wait_fraction, MAX_WAIT)),
        "decoding": cores * per_core / samples_per_s if cores else math.inf,
        "requests": most_samples_per_s / samples_per_s,
    }
    limit = min(limits, key=lambda name: limits[name])
    ratio = limits[limit]
    if ratio < MIN_GAIN:
        return None
    needed = math.ceil(ratio * samples_per_s / per_core)
    then = {"compute": "; then computing limits", "decoding": "; then decoding limits", "requests": "; more in shards"}
    with_readers = f" with {needed} readers" if needed > workers else ""
    size = "" if short_side == _SHORT_SIDE else f" --size {short_side}"
    return FormatGain(
        format=JPEG,
        bytes_now=bytes_per_sample,
        bytes_then=bytes_then,
        short_side=short_side,
        ratio=ratio,
        limit=limit,
        cores=needed,
        words=(
            f"{JPEG} needs about {_kilobytes(bytes_then)} per sample instead of {_kilobytes(bytes_per_sample)}: "
            f"at most {ratio:.1f}x{with_readers} (estimated{then.get(limit, '')}). "
            f"Try: ossconsole upload SRC --format {JPEG}{size}"
        ),
    )


def _kilobytes(count: float) -> str:
    return f"{count / 1e3:,.1f} KB" if count < 10_000 else f"{count / 1e3:,.0f} KB"
