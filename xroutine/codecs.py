"""The codecs of stored arrays: those asked for, and always a checksum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.registry import get_codec_class


def with_checksum(compressors: Any, dtype: np.dtype[Any]) -> list[Any]:
    """The codecs asked for, with a checksum: zstd's own where zstd ends them, crc32c otherwise.

    The default, LZ4 on shuffled bits, was the fastest of those that make float recordings smaller; see
    ``docs/architecture.md``.
    """
    if isinstance(compressors, str) and compressors == "auto":
        codecs: list[Any] = [BloscCodec(typesize=dtype.itemsize, cname="lz4", clevel=5, shuffle="bitshuffle")]
    elif compressors is None:
        codecs = []
    else:
        codecs = list(compressors) if isinstance(compressors, Iterable) else [compressors]
    if codecs and isinstance(codecs[-1], ZstdCodec):
        return [*codecs[:-1], ZstdCodec(level=codecs[-1].level, checksum=True)]
    if codecs and isinstance(codecs[-1], Crc32cCodec):
        return codecs
    return [*codecs, Crc32cCodec()]


def from_words(words: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The codecs that metadata name."""
    return [get_codec_class(str(codec["name"])).from_dict(dict(codec)) for codec in words]
