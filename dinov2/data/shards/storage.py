"""The seam to storage: local files by system calls, whatever has a scheme (``s3://``, ``memory://``) by fsspec."""

from __future__ import annotations

import os

import fsspec


def is_url(path: str) -> bool:
    """Whether ``path`` goes through fsspec."""
    return "://" in path


def read_range(path: str, start: int, size: int) -> bytearray:
    """``size`` bytes from byte ``start``; EOFError where the file ends before."""
    if is_url(path):
        filesystem, inner = fsspec.core.url_to_fs(path)
        buffer = bytearray(filesystem.cat_file(inner, start=start, end=start + size))
    else:
        buffer = bytearray(size)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            del buffer[os.preadv(descriptor, [buffer], start) :]
        finally:
            os.close(descriptor)
    if len(buffer) < size:
        raise EOFError(f"{path}: ends at byte {start + len(buffer)}, {size - len(buffer)} bytes too early")
    return buffer


def read_file(path: str) -> bytes:
    """The whole file."""
    with fsspec.open(path, "rb") as file:
        return file.read()


def sizes(folder: str) -> dict[str, int]:
    """File name -> bytes of everything in a folder (one listing, also for 100,000 shards)."""
    if is_url(folder):
        filesystem, inner = fsspec.core.url_to_fs(folder)
        return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in filesystem.ls(inner, detail=True)}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}
