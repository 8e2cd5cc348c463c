"""Tortillas: one file that holds many, found by a table at its end; GEO-Bench-2 is published so.

Bytes 0 and 1 are "#y" ("WX" where the file also describes the whole set), 2 to 9 the offset and 10 to 17 the length of
a parquet table, little endian. The files follow one after the other from byte 200, the table is last: a row per file
with ``tortilla:id``, ``tortilla:offset``, ``tortilla:length``, ``tortilla:data_split``, and columns of its makers.
A file may be a tortilla itself, whose offsets count from its own first byte. Source: the TACO specification 0.2.0 and
the writer pytortilla of its authors.

``set.tortilla::sample_7/s2`` is the file ``s2`` in the tortilla ``sample_7`` of ``set.tortilla``; a number instead of
an id counts the files from 0, or from the last one as -1.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from eval.datasets.listing import Columns, Pattern

SUFFIX = ".tortilla"
MAGIC = (b"#y", b"WX")
PLACE = ("tortilla:id", "tortilla:offset", "tortilla:length")


class Place(NamedTuple):
    """Where a file begins in another, and its length, in bytes."""

    offset: int
    length: int


def table(file: Path, at: int = 0, columns: tuple[str, ...] | None = None) -> pa.Table:
    """The table (or some of its columns) of the tortilla that begins at byte ``at`` of a file."""
    with file.open("rb") as stream:
        stream.seek(at)
        head = stream.read(18)
        if head[:2] not in MAGIC:
            raise ValueError(f"{file} is damaged or no tortilla (byte {at}: {head[:2]!r}); get the file again")
        offset, length = (int.from_bytes(head[i : i + 8], "little") for i in (2, 10))
        stream.seek(at + offset)
        try:
            return parquet.read_table(pa.BufferReader(stream.read(length)), columns=columns and list(columns))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} is damaged or no tortilla ({error}); get the file again") from error


@lru_cache(maxsize=256)
def contents(file: Path, at: int, modified_ns: int) -> Mapping[str, Place]:
    """The files of a tortilla by their ids, in order; offsets are those in ``file``."""
    rows = table(file, at, PLACE).to_pydict()
    ids, offsets, lengths = (rows[name] for name in PLACE)
    return {name: Place(at + offset, n) for name, offset, n in zip(ids, offsets, lengths, strict=True)}


def find(path: Path) -> tuple[Path, Place | None]:
    """The tortilla of a path as above, and where the file named lies in it (None: there is no such file)."""
    name, _, member = str(path).partition("::")
    file, place = Path(name), Place(0, 0)
    modified = file.stat().st_mtime_ns
    for part in member.split("/"):
        inside = contents(file, place.offset, modified)
        if part not in inside and part.lstrip("-").isdigit() and -len(inside) <= int(part) < len(inside):
            part = list(inside)[int(part)]
        if part not in inside:
            return file, None
        place = inside[part]
    return file, place


def subfile(path: Path) -> str:
    """What GDAL calls the file in a tortilla."""
    file, place = there(path)
    return f"/vsisubfile/{place.offset}_{place.length},{file}"


def stream(path: Path) -> io.BufferedReader:
    """The file in a tortilla, to be read from anywhere."""
    return io.BufferedReader(Window(*there(path)))


def there(path: Path) -> tuple[Path, Place]:
    """As :func:`find`, of a file that is there."""
    file, place = find(path)
    assert place is not None, f"{path}: see stores.require"
    return file, place


class Window(io.RawIOBase):
    """The bytes of a file between two places."""

    def __init__(self, file: Path, place: Place) -> None:
        self.file, self.place, self.position = file.open("rb"), place, 0

    def readable(self) -> bool:
        """That it can be read."""
        return True

    def seekable(self) -> bool:
        """That it can be read from any place."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte, counted from the window's start, from here, or from its end."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.place.length}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Read what fits into ``buffer`` and lies in the window."""
        self.file.seek(self.place.offset + self.position)
        count = self.file.readinto(memoryview(buffer)[: max(self.place.length - self.position, 0)])
        self.position += count
        return count

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        super().close()


def samples(columns: Columns, root: Path, pattern: Pattern) -> tuple[Columns, list[Path]]:
    """A row per sample of the tortillas in ``columns`` (a row per file), with what their tables say; and the files.

    ``pattern`` ends in ``::{id}`` and perhaps more. Further fields in it are found in the ids of the files inside of
    each sample, which takes a table more per sample. ValueError where there is none.
    """
    head, _, member = pattern.text.partition("::")
    inner = Pattern(member.partition("/")[2])
    files: list[Path] = []
    rows: list[dict[str, Any]] = []
    for i in range(len(columns["bytes"])):
        known = {name: column[i] for name, column in columns.items()}
        files.append(root / Pattern(head).fill(known))
        for told in described(files[-1]):
            nested = parsed(files[-1], told, inner) if inner.fields else [{}]
            rows += [known | told | fields for fields in nested]
    if not rows:
        raise ValueError(f"the tortillas in {root} hold no file {member}; correct the pattern or get the data again")
    return {name: [row[name] for row in rows] for name in rows[0]}, files


def described(file: Path) -> Iterator[dict[str, Any]]:
    """What the outer table says of every sample: ``id``, ``data_split``, ``bytes`` and the makers' own columns."""
    stored = table(file)
    if missing := set(PLACE) - set(stored.column_names):
        raise ValueError(f"{file} is damaged or no tortilla (its table has no {min(missing)}); get the file again")
    own = [name for name in stored.column_names if ":" not in name and not name.startswith("__")]
    split = ["tortilla:data_split"] if "tortilla:data_split" in stored.column_names else []
    kept = stored.select(["tortilla:id", "tortilla:length", *split, *own])
    names = ["id", "bytes", *("data_split" for _ in split), *own]
    yield from kept.rename_columns(names).to_pylist()


def parsed(file: Path, told: Mapping[str, Any], inner: Pattern) -> Iterator[dict[str, str]]:
    """The fields of the ids in a sample that have the form ``inner``."""
    place = contents(file, 0, file.stat().st_mtime_ns)[told["id"]]
    for name in contents(file, place.offset, file.stat().st_mtime_ns):
        if fields := inner.parse(name):
            yield fields
