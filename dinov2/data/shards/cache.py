"""Copies of remote shards on this machine: bounded, verified, shared by all of its processes.

A copy is one file named by the shard's SHA-256: the tar with its sidecar behind. While it is downloaded it is called
``{sha256}.{bytes}.part`` and locked; what a kill leaves is continued by whoever wants the shard next. The bytes of a
part count in full from the start, so that the folder never outgrows its limit. Other files in it are left alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import queue
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dinov2.data.shards import storage
from dinov2.data.shards.index import REMEDY, Part
from dinov2.data.shards.sidecar import Sidecar

log = logging.getLogger(__name__)

COPY = re.compile(r"[0-9a-f]{64}(?:\.([0-9]+)\.part)?")
CHUNK = 8 << 20  # bytes per request
LOCK = "lock"  # held while files are counted, deleted or renamed


class Cache:
    """A folder that holds at most ``limit`` bytes of copies; those used longest ago make room for new ones."""

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process = 0  # whose the three below are: a fork has no copying thread
        self._queue: queue.SimpleQueue[tuple[Part, int]] = queue.SimpleQueue()
        self._asked: set[str] = set()
        self._error: storage.StorageError | None = None

    def read(self, sha256: str, start: int, size: int) -> np.ndarray:
        """Bytes of a copy, uint8 ``[size]``; FileNotFoundError where there is none."""
        path = self.folder / sha256
        os.utime(path)
        return storage.read_range(str(path), start, size)

    def want(self, part: Part, number: int) -> None:
        """Have this process copy a shard in the background; raises what an earlier copy ended with."""
        if self._process != os.getpid():
            self._process, self._queue, self._asked, self._error = os.getpid(), queue.SimpleQueue(), set(), None
            threading.Thread(target=self._work, daemon=True).start()  # daemon: a worker that ends does not wait for it
        if self._error:
            raise storage.StorageError(*self._error.args) from self._error
        sha256 = part.sha256[number]
        if storage.is_url(part.folder) and sha256 not in self._asked and not (self.folder / sha256).exists():
            self._asked.add(sha256)
            self._queue.put((part, number))

    def _work(self) -> None:
        while True:
            part, number = self._queue.get()
            try:
                if self.fetch(part, number):
                    self._asked.discard(part.sha256[number])
            except storage.StorageError as error:
                self._error = error
            except OSError as error:  # of the folder: what is wrong with a shard's bytes is no error here
                self._error = storage.StorageError(
                    f"data.cache {self.folder}: {error.strerror}; lower data.cache_gib or choose another folder"
                )
                self._error.__cause__ = error

    def fetch(self, part: Part, number: int) -> bool:
        """Copy a shard unless it is there; False where it cannot be kept.

        That is, where copies in the making take all the room, or where the bytes are not those of the index, which is
        logged: such a shard is read by ranges, where every sample's checksum tells the good from the damaged.
        """
        sha256, sizes = part.sha256[number], (int(part.bytes[number]), int(part.sidecar_bytes[number]))
        final, partial = self.folder / sha256, self.folder / f"{sha256}.{sum(sizes)}.part"
        for _ in range(2):  # bytes that went wrong on the way are fetched once more
            with self._sole(partial, final) as file:
                if file is None:
                    return True
                if not self._make_room(partial):
                    return False
                sources = zip((part.path(number), part.sidecar_path(number)), sizes, strict=True)
                good = _download(file, sources) and _is_whole(partial, sizes[0], sha256)
                with self._locked():
                    partial.rename(final) if good else partial.unlink()
            if good:
                return True
        log.warning("%s: its bytes are not those of the index, and no copy is kept; %s", part.path(number), REMEDY)
        return False

    @contextmanager
    def _sole(self, partial: Path, final: Path) -> Iterator[BinaryIO | None]:
        """``partial`` open for appending, held by this thread only; None once ``final`` is there."""
        while not final.exists():
            with open(partial, "ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if _is_same(file, partial):  # else somebody finished or removed it meanwhile
                    yield file
                    return
        yield None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / LOCK, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self, own: Path) -> bool:
        """Delete copies, and parts that nobody works on, until all fit; ``own`` and False where they never do."""
        with self._locked():
            found = []
            for entry in os.scandir(self.folder):
                if match := COPY.fullmatch(entry.name):
                    found.append((entry.stat().st_mtime, int(match[1] or entry.stat().st_size), Path(entry.path)))
            excess = sum(size for _, size, _ in found) - self.limit
            for _, size, path in sorted(found):
                if excess > 0 and path != own and (not path.suffix or _abandoned(path)):
                    path.unlink()
                    excess -= size
            if excess > 0:
                own.unlink()
        return excess <= 0


def _is_same(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is still the one that its path names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _abandoned(part: Path) -> bool:
    """Whether no process downloads into this file."""
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _download(file: BinaryIO, sources: Iterable[tuple[str, int]]) -> bool:
    """Append ``(url, bytes)`` one after the other, from where the file ends; False where one is absent or cut."""
    done = file.seek(0, os.SEEK_END)  # another process may have gone on with it since it was opened
    for url, size in sources:
        while done < size:
            try:
                chunk = storage.read_range(url, done, min(CHUNK, size - done))
            except (FileNotFoundError, EOFError):
                return False
            file.write(chunk.data)
            done += len(chunk)
        done -= size
    file.flush()
    return True


def _is_whole(copy: Path, size: int, sha256: str) -> bool:
    """Whether the first ``size`` bytes have this digest and are followed by an intact sidecar."""
    digest = hashlib.sha256()
    with open(copy, "rb") as file:
        while chunk := file.read(min(CHUNK, size)):
            digest.update(chunk)
            size -= len(chunk)
        try:
            Sidecar.unpack(file.read())
        except ValueError:
            return False
    return digest.hexdigest() == sha256
