"""The binary sidecar of a shard: where every member lies and what its checksum is.

Layout, little endian: magic, version, number of samples, of members, bytes of the two texts; ``first`` ``<u4 [S+1]``
(the members of sample i are ``first[i]:first[i+1]``); ``MEMBER [M]``; the sample keys and the member names, each joined
by newlines; the CRC-32C of all of this.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from google_crc32c import value as crc32c

from dinov2.data.shards.members import MAX_BYTES, MEMBER_NAME, array_name, padded

MAGIC, VERSION = b"EOSSLIDX", 2
HEAD = struct.Struct("<8s5I")
MEMBER = np.dtype([("start", "<u8"), ("header", "<u4"), ("size", "<u4"), ("crc", "<u4"), ("name", "<u4")])


class Member(NamedTuple):
    """One tar member: first byte, bytes of header and of payload, CRC-32C of the record (header, payload, padding)."""

    start: int
    header: int
    size: int
    crc: int
    name: str

    @property
    def end(self) -> int:
        """First byte after the record."""
        return self.start + self.header + padded(self.size)


@dataclass(frozen=True)
class Sidecar:
    """Keys of a shard's samples and their members."""

    keys: list[str]
    names: list[str]
    first: np.ndarray  # [S+1]
    table: np.ndarray  # [M] of MEMBER

    @classmethod
    def build(cls, samples: list[tuple[str, list[Member]]]) -> Sidecar:
        """From the members of every sample, in the order of the tar."""
        members = [m for _, own in samples for m in own]
        names = sorted({m.name for m in members})
        number = {name: i for i, name in enumerate(names)}
        first = np.cumsum([0] + [len(own) for _, own in samples], dtype="<u4")
        table = np.array([(*m[:4], number[m.name]) for m in members], MEMBER)
        return cls([key for key, _ in samples], names, first, table)

    def members(self, index: int) -> list[Member]:
        """Members of one sample, in the order of the tar."""
        rows = self.table[self.first[index] : self.first[index + 1]].tolist()
        return [Member(start, header, size, crc, self.names[name]) for start, header, size, crc, name in rows]

    def holding(self, images: Collection[str]) -> np.ndarray:
        """Numbers of the samples that have at least one of these images."""
        wanted = [number for number, name in enumerate(self.names) if array_name(name) in images]
        sample = np.repeat(np.arange(len(self.keys)), np.diff(self.first).astype(np.int64))  # [M]
        return np.unique(sample[np.isin(self.table["name"], wanted)])

    def pack(self) -> bytes:
        """The file's bytes."""
        keys, names = "\n".join(self.keys).encode(), "\n".join(self.names).encode()
        head = HEAD.pack(MAGIC, VERSION, len(self.keys), len(self.table), len(keys), len(names))
        body = head + self.first.tobytes() + self.table.tobytes() + keys + names
        return body + crc32c(body).to_bytes(4, "little")

    @classmethod
    def unpack(cls, data: bytes) -> Sidecar:
        """The inverse of :meth:`pack`; ValueError where a byte is not as written."""
        if data[:8] != MAGIC or crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise ValueError("the sidecar is damaged")
        _, version, samples, count, key_bytes, name_bytes = HEAD.unpack_from(data)
        if version != VERSION:
            raise ValueError(f"the sidecar has format version {version}, this program reads {VERSION}")
        first = np.frombuffer(data, "<u4", samples + 1, HEAD.size)
        table = np.frombuffer(data, MEMBER, count, HEAD.size + first.nbytes)
        at = HEAD.size + first.nbytes + table.nbytes
        keys, names = data[at : at + key_bytes].decode(), data[at + key_bytes : at + key_bytes + name_bytes].decode()
        sidecar = cls(keys.split("\n") if keys else [], names.split("\n") if names else [], first, table)
        if strange := next((name for name in sidecar.names if not MEMBER_NAME.fullmatch(name)), None):
            raise ValueError(f"the sidecar lists a member {strange!r}, which is refused")
        if count and table["size"].max() > MAX_BYTES:
            raise ValueError(f"the sidecar declares a member of {table['size'].max()} bytes (limit {MAX_BYTES})")
        return sidecar
