"""A sample as tar members: ``{key}.{sensor}-{gsd}m.npy``, ``{key}.label_{name}.npy`` and ``{key}.json``.

With zstd the arrays end in ``.npy.zst`` (content size and checksum in every frame). Nothing here is ever unpickled.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import zstandard

from dinov2.data.sample import IMAGE_KEY, ImageSpec, Sample

MAX_BYTES = 1 << 30  # of a member, stored or decoded: more is a damaged file or a decompression bomb
BLOCK = 512  # of a tar file
ZSTD_LEVEL = 3
COMPRESSIONS = (None, "zstd")
LABEL = re.compile(r"[a-z0-9_]+")
LABEL_PREFIX = "label_"
JSON = "json"
MEMBER_NAME = re.compile(r"json|[a-z0-9_\-]+\.npy(\.zst)?")


def padded(size: int) -> int:
    """Bytes that a payload takes in a tar file."""
    return -(-size // BLOCK) * BLOCK


def tar_record(name: str, payload: bytes) -> bytes:
    """Header, payload and padding of one tar member: a pure function of name and payload (no owner, no time)."""
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    return info.tobuf(tarfile.PAX_FORMAT) + payload + bytes(padded(len(payload)) - len(payload))


def array_name(member: str) -> str:
    """Image key or ``label_{name}`` of an array member (``json`` stays as it is)."""
    return member.removesuffix(".zst").removesuffix(".npy")


def encode_array(array: np.ndarray, compression: str | None) -> bytes:
    """``.npy`` bytes, compressed on request."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    if compression is None:
        return buffer.getvalue()
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compress(buffer.getvalue())


@lru_cache(maxsize=1024)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype from the header of a version 1.0 file (the same few headers come again and again)."""
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    if fortran or dtype.hasobject:
        raise ValueError(f"an array of dtype {dtype} {'in Fortran order ' if fortran else ''}is refused")
    return shape, dtype


def decode_array(payload: bytes | bytearray | memoryview, compressed: bool) -> np.ndarray:
    """The array of an ``.npy`` payload, without a copy; ValueError for anything else than plain numbers."""
    if compressed:
        declared = zstandard.frame_content_size(payload)
        if not 0 <= declared <= MAX_BYTES:
            raise ValueError(f"a zstd frame that declares {declared} bytes is refused (limit {MAX_BYTES})")
        try:
            payload = bytearray(zstandard.ZstdDecompressor().decompress(payload))
        except zstandard.ZstdError as error:
            raise ValueError(f"zstd: {error}") from error
    if bytes(payload[:8]) != b"\x93NUMPY\x01\x00":
        raise ValueError("not an .npy file of version 1.0")
    start = 10 + int.from_bytes(payload[8:10], "little")
    shape, dtype = _npy_header(bytes(payload[8:start]))
    if math.prod(shape) * dtype.itemsize != len(payload) - start:
        raise ValueError(f"{len(payload) - start} bytes cannot hold an array of shape {shape} and dtype {dtype}")
    return np.frombuffer(payload, dtype, offset=start).reshape(shape)


def encode(sample: Sample, compression: str | None) -> Iterator[tuple[str, bytes]]:
    """``(member, payload)`` of every member, JSON last; ValueError names what cannot be stored."""
    suffix = ".npy" if compression is None else ".npy.zst"
    labels = dict(sample.labels)
    arrays = {
        f"{LABEL_PREFIX}{n}": labels.pop(n) for n, v in sample.labels.items() if np.ndim(v) and hasattr(v, "dtype")
    }
    for name in sample.labels:
        if not LABEL.fullmatch(name):
            raise ValueError(f"sample {sample.key!r}: label {name!r} must be lower case letters, digits or '_'")
    for name, array in {**sample.images, **arrays}.items():
        if array.dtype.kind not in "biuf" or array.nbytes > MAX_BYTES:
            raise ValueError(
                f"sample {sample.key!r}, {name!r}: {array.nbytes} bytes of dtype {array.dtype} are refused"
            )
        yield name + suffix, encode_array(array, compression)
    fields = {n: getattr(sample, n) for n in ("times", "footprint", "crs", "meta")} | {"labels": labels}
    try:
        text = json.dumps(fields, sort_keys=True, allow_nan=False, default=lambda number: number.item())
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"sample {sample.key!r}: times, footprint, labels or meta do not fit JSON: {error}") from error
    yield JSON, text.encode()


def decode(key: str, payloads: Mapping[str, memoryview], specs: Mapping[str, ImageSpec]) -> Sample:
    """The inverse of :func:`encode` for the members that are given (``json`` among them)."""
    fields: dict[str, Any] = json.loads(bytes(payloads[JSON]))
    images, labels = {}, fields["labels"]
    for member, payload in payloads.items():
        if member == JSON:
            continue
        name, array = array_name(member), decode_array(payload, member.endswith(".zst"))
        if IMAGE_KEY.fullmatch(name):
            images[name] = array
        else:
            labels[name.removeprefix(LABEL_PREFIX)] = array
    footprint = fields["footprint"] and tuple(fields["footprint"])
    times = {name: dates for name, dates in fields["times"].items() if name in images}
    own = {name: specs[name] for name in images}
    return Sample(key, images, own, times, footprint, fields["crs"], labels, fields["meta"])
