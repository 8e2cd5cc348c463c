"""The seam to storage: local files by system calls, whatever has a scheme (``s3://``, ``https://``) by fsspec.

Opening a set fails at once; reading from one that was opened is patient, because a store that was there will mostly be
there again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
import numpy as np

log = logging.getLogger(__name__)
T = TypeVar("T")

WAITS = (0.5, 1, 2, 4, 8, 16, 32)  # seconds between the attempts of a patient read, on top of the client's own
GONE: set[str] = set()  # what was waited for in vain once: not waited for again
HTTP = ("http://", "https://")  # such servers have no listing that names sizes


class StorageError(ValueError):
    """A store that does not answer, or refuses; the message names the URL. Never taken for a damaged sample."""


def is_url(path: str) -> bool:
    """Whether ``path`` goes through fsspec."""
    return "://" in path


def _remote(path: str, call: Callable[[Any, str], T], waits: tuple[float, ...] = ()) -> T:
    """``call(filesystem, path within it)``, again after each of ``waits``.

    FileNotFoundError and EOFError are an answer and raised as they are, everything else as :class:`StorageError`.
    """
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:  # no such scheme, or its package is not installed
        raise StorageError(f"{path}: {error}") from error
    for wait in (*(() if path in GONE else waits), None):
        try:
            return call(filesystem, inner)
        except EOFError:
            raise
        except PermissionError as error:
            raise StorageError(
                f"{path}: access is denied ({error}); set the store's credentials in the environment or in .env"
            ) from error
        except Exception as error:  # of any client: botocore's and aiohttp's have no base of their own
            if wait is None:
                if isinstance(error, FileNotFoundError):
                    GONE.add(path)
                    raise
                raise StorageError(f"{path}: the store cannot be read ({type(error).__name__}: {error})") from error
            log.warning("%s: %s: %s; trying again in %g s", path, type(error).__name__, error, wait)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def read_range(path: str, start: int, size: int) -> np.ndarray:
    """Bytes ``start .. start + size - 1`` as uint8 ``[size]``; EOFError where the file ends before."""
    if is_url(path):
        buffer = np.frombuffer(_remote(path, lambda fs, inner: _cat(fs, inner, start, size), WAITS), np.uint8)
    else:
        buffer = np.empty(size, np.uint8)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            buffer = buffer[: os.preadv(descriptor, [buffer.data], start)]
        finally:
            os.close(descriptor)
    if len(buffer) < size:
        raise EOFError(f"{path}: ends at byte {start + len(buffer)}, {size - len(buffer)} bytes too early")
    return buffer


def _cat(filesystem: Any, inner: str, start: int, size: int) -> bytearray:
    """A range of a remote file, in memory that the caller may write to."""
    try:
        data = filesystem.cat_file(inner, start=start, end=start + size)
    except Exception as error:  # of any client: a range that begins behind the end of a cut file has no name in common
        size_now = filesystem.size(inner)  # None where a server does not tell
        if size_now is not None and size_now <= start:
            raise EOFError(f"{inner}: ends before byte {start}") from error
        raise
    if len(data) > size:
        raise OSError("the server ignores byte ranges and sends whole files")
    return bytearray(data)


def read_file(path: str) -> bytes:
    """The whole file."""
    if is_url(path):
        return _remote(path, lambda filesystem, inner: filesystem.cat_file(inner))
    with open(path, "rb") as file:
        return file.read()


def sizes(folder: str) -> dict[str, int] | None:
    """File name -> bytes of everything in a folder (one listing, also for 100,000 shards); None over HTTP."""
    if folder.startswith(HTTP):
        return None
    if is_url(folder):
        return _remote(folder, _listing)
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def _listing(filesystem: Any, inner: str) -> dict[str, int]:
    filesystem.invalidate_cache()  # another set may have been there a moment ago
    return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in filesystem.ls(inner, detail=True)}
