"""Zarr v2 groups in zip files, as SSL4EO-S12 and TerraMesh ship them: read chunk by chunk, without trust."""

from __future__ import annotations

import datetime
import json
import math
import re
import zipfile
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from data_prep.common import Refused
from dinov2.data.shards.members import MAX_BYTES

# what turns bytes into numbers or text; others (pickle, msgpack, json) can make any object
CODECS = {"blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma", "shuffle", "delta", "fixedscaleoffset", "vlen-utf8"}
EPOCH = re.compile(r"(\w+) since (\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2}:\d{2}))?")


class ZarrZip:
    """An open zip of one zarr group; ``what`` names it. :class:`Refused` for whatever is damaged or unsafe."""

    def __init__(self, file: BinaryIO, what: str) -> None:
        self.what = what
        try:
            self.zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError) as error:
            raise Refused(f"{what} is damaged: {error}") from error
        self.members = {m.filename: m for m in self.zip.infolist()}

    def read(self, name: str) -> bytes:
        """One member."""
        if self.members[name].file_size > MAX_BYTES:
            raise Refused(f"{self.what}: {name} declares {self.members[name].file_size} bytes (limit {MAX_BYTES})")
        try:
            return self.zip.read(name)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise Refused(f"{self.what}: {name} is damaged: {error}") from error

    def meta(self, array: str) -> dict[str, Any]:
        """The description of an array, checked."""
        if f"{array}/.zarray" not in self.members:
            raise ValueError(f"{self.what} has no array {array!r}")
        meta = json.loads(self.read(f"{array}/.zarray"))
        codecs = [meta.get("compressor"), *(meta.get("filters") or ())]
        for codec in codecs:
            if codec and codec["id"] not in CODECS:
                raise Refused(f"{self.what}: {array} is stored with the codec {codec['id']!r}, which is not read")
        item = 64 if meta["dtype"] == "|O" else np.dtype(meta["dtype"]).itemsize
        if math.prod(meta["chunks"]) * item > MAX_BYTES:
            raise Refused(
                f"{self.what}: {array} declares chunks of {meta['chunks']} {meta['dtype']} (limit {MAX_BYTES})"
            )
        return meta

    def has(self, array: str) -> bool:
        """Whether there is such an array."""
        return f"{array}/.zarray" in self.members

    def array(self, name: str, first: int | None = None) -> np.ndarray:
        """An array, or its part at ``first`` of the first axis, of which alone the chunks are read."""
        meta = self.meta(name)
        wanted = None if first is None else first // meta["chunks"][0]
        shape = meta["shape"] if first is None else meta["shape"][1:]
        item = 64 if meta["dtype"] == "|O" else np.dtype(meta["dtype"]).itemsize
        if math.prod(shape) * item > MAX_BYTES:
            raise Refused(f"{self.what}: {name} declares {shape} {meta['dtype']} (limit {MAX_BYTES} bytes)")
        chosen = [key for key in self.members if key.startswith(f"{name}/") and _is_of(key, wanted)]
        buffer = default_buffer_prototype().buffer
        store = MemoryStore({key[len(name) + 1 :]: buffer.from_bytes(self.read(key)) for key in chosen})
        try:
            array = zarr.open_array(store, mode="r", zarr_format=2)
            return np.asarray(array[:] if first is None else array[first])
        except (ValueError, RuntimeError, OSError) as error:
            raise Refused(f"{self.what}: {name} is damaged: {error}") from error

    def dates(self, name: str, first: int | None = None) -> list[str]:
        """ISO dates of an array of times: datetime64, or numbers with a unit (nanoseconds since 1970 without one)."""
        times = np.atleast_1d(self.array(name, first))
        if times.dtype.kind == "M":
            return [str(day) for day in times.astype("datetime64[D]")]
        attributes = f"{name}/.zattrs"
        units = json.loads(self.read(attributes)).get("units", "") if attributes in self.members else ""
        unit, day, clock = match.groups() if (match := EPOCH.match(units)) else ("nanoseconds", "1970-01-01", None)
        since = datetime.datetime.fromisoformat(f"{day}T{clock or '00:00:00'}")
        if unit == "nanoseconds":
            times, unit = times / 1000, "microseconds"
        return [(since + datetime.timedelta(**{unit: float(time)})).date().isoformat() for time in times]


def _is_of(key: str, chunk: int | None) -> bool:
    """Whether a member is metadata, or a chunk with this number on the first axis (None: any)."""
    name = key.rsplit("/", 1)[-1]
    number = re.fullmatch(r"(?:.*/)?(\d+)(?:[./]\d+)*", key.split("/", 1)[1])
    return name in (".zarray", ".zattrs") or (number is not None and (chunk is None or int(number[1]) == chunk))


def expect(shape: Sequence[int], bands: int, what: str) -> None:
    """ValueError unless an image ``[T, C, H, W]`` has this number of bands."""
    if len(shape) != 4 or shape[1] != bands:
        raise ValueError(f"{what} has images of shape {tuple(shape)}, not [time, {bands} bands, y, x]")
