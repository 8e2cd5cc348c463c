"""Where a source's files lie: a local folder or any fsspec URL, read by ranges, every byte counted."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec

from dinov2.data.shards.storage import is_url


@dataclass
class Traffic:
    """Bytes that this process has read from sources so far."""

    bytes: float = 0


READ = Traffic()


class _Counted(io.RawIOBase):
    """A binary file whose reads are counted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        READ.bytes += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class Store:
    """A folder: ``root`` is a path or a URL. Names of files are relative to it, with ``/`` between folders."""

    root: str

    @classmethod
    def at(cls, root: str) -> Store:
        """The folder ``root``, which must exist (ValueError)."""
        store = cls(root if re.fullmatch(r"\w+://", root) else root.rstrip("/"))
        if not store.isdir():
            raise ValueError(f"{root} is not a folder")
        return store

    def path(self, name: str = "") -> str:
        """Path or URL of a file or folder."""
        return f"{self.root}/{name}" if name else self.root

    def _at(self, name: str = "") -> tuple[Any, str]:
        """The file system, and what a file is called there; ValueError for a scheme that cannot be read here."""
        try:
            return fsspec.core.url_to_fs(self.path(name))
        except (ImportError, ValueError) as error:  # no such scheme, or its package is not installed
            raise ValueError(f"{self.path(name)}: {error}") from error

    def isdir(self, name: str = "") -> bool:
        """Whether there is such a folder."""
        filesystem, inner = self._at(name)
        return filesystem.isdir(inner)

    def files(self, suffixes: tuple[str, ...], below: str = "") -> list[str]:
        """Names of all files with one of these suffixes (any case), sorted, without hidden ones and macOS forks."""
        filesystem, inner = self._at()
        start = f"{inner}/{below}".rstrip("/")
        names = [path[len(inner) :].lstrip("/") for path in filesystem.find(start)]
        hidden = re.compile(r"(^|/)\.[^/]*$")
        return sorted(n for n in names if n.lower().endswith(suffixes) and not hidden.search(n))

    def folders(self, below: str = "") -> list[str]:
        """Names of the folders directly in ``below``, sorted; none where it does not exist."""
        filesystem, inner = self._at(below)
        if not filesystem.isdir(inner):
            return []
        entries = filesystem.ls(inner, detail=True)
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        filesystem, inner = self._at(name)
        return filesystem.exists(inner)

    def open(self, name: str, cache: str = "none") -> BinaryIO:
        """A seekable file; ``cache`` is fsspec's for URLs (``none``: every read is a range request of its own)."""
        if is_url(self.root):
            filesystem, inner = self._at(name)
            return io.BufferedReader(_Counted(filesystem.open(inner, "rb", cache_type=cache)))
        return io.BufferedReader(_Counted(open(self.path(name), "rb")))

    def read(self, name: str) -> bytes:
        """The whole file."""
        with self.open(name) as file:
            return file.read()

    def fingerprint(self, names: Iterable[str]) -> str:
        """Digest of names, sizes and times of modification: changed files are another source."""
        listing = "\n".join(f"{name} {self._stamp(name)}" for name in names)
        return hashlib.sha256(listing.encode()).hexdigest()

    def _stamp(self, name: str) -> str:
        if not is_url(self.root):
            found = os.stat(self.path(name))
            return f"{found.st_size} {found.st_mtime_ns}"
        filesystem, inner = self._at(name)
        info = filesystem.info(inner)
        marks = [str(info[key]) for key in ("ETag", "etag", "LastModified", "mtime", "created") if key in info]
        return " ".join([str(info["size"]), *marks[:1]])
