"""Checkpoints: whole or absent, strict, independent of the number of ranks and of how they share the parameters.

``checkpoints/step-00001000`` is a folder of torch.distributed.checkpoint. Every rank writes its part of the tensors
into ``step-00001000.partial``; when all are on the disk, rank 0 adds what is no tensor (``rest.pt``) and the table of
contents, and gives the folder its name. A run resumes from the newest one.
"""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dinov2 import distributed

PATTERN = "step-" + "[0-9]" * 8
REST = "rest.pt"
Tensors = Mapping[str, Tensor]
# All that a table of contents is made of; a pickle that names anything else is refused.
FORMAT = "torch.distributed.checkpoint"
CONTENTS = {
    f"{FORMAT}.metadata": (
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    f"{FORMAT}.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"),
    "pathlib": ("PosixPath",),
}
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process is no mistake


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder, None if there is none."""
    return max((folder / "checkpoints").glob(PATTERN), default=None)


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is one."""
    return (path / REST).is_file()


class Saver:
    """Saves the checkpoints of the run in ``folder``, one at a time.

    The ``keep`` newest stay, and those whose step is a multiple of ``keep_every`` (0: none). ``asynchronous``: the
    state is copied to the CPU, and a thread writes it while the run goes on; the next save waits for it. Within
    ``with``; at its end nothing is left unwritten.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int, asynchronous: bool) -> None:
        self.folder, self.keep, self.keep_every = folder / "checkpoints", keep, keep_every
        self.asynchronous, self.group = asynchronous, distributed.cpu_group() if asynchronous else None
        self.path: Path | None = None  # being written
        self.pending: futures.Future | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif self.pending:
            futures.wait([self.pending])  # the run's own error is the one to show

    def save(self, step: int, tensors: Tensors, rest: Mapping[str, Any]) -> None:
        """Write the state after ``step`` steps. What cannot be written raises OSError and leaves earlier ones as is."""
        self.wait()
        self.path = self.folder / f"step-{step:08d}"
        if distributed.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob("*.partial"):  # left by a killed process
                shutil.rmtree(stale)
        distributed.barrier()
        writer = Writer(self, self.path, rest)
        try:
            if self.asynchronous:
                pending = dcp.async_save(dict(tensors), storage_writer=writer, process_group=self.group)
                assert isinstance(pending, futures.Future)
                self.pending = pending
            else:
                dcp.save(dict(tensors), storage_writer=writer)
        except (CheckpointException, OSError) as error:
            raise self.failure(error) from error

    def wait(self) -> None:
        """Until the last save is on the disk; raises what :meth:`save` does."""
        if self.pending is None:
            return
        try:
            self.pending.result()
        except (CheckpointException, OSError) as error:
            raise self.failure(error) from error
        finally:
            self.pending = None

    def failure(self, error: BaseException) -> OSError:
        """The sentence for a checkpoint that could not be written, whose beginning is removed."""
        if distributed.rank() == 0:
            assert self.path is not None
            shutil.rmtree(self.path.with_suffix(".partial"), ignore_errors=True)
        kept = latest(self.folder.parent)
        return OSError(
            f"could not write checkpoint {self.path}: {reason(error)}; "
            + (f"the previous one is intact: {kept.name}" if kept else "there is no previous one")
        )

    def prune(self) -> None:
        """Remove what need not be kept."""
        for old in sorted(self.folder.glob(PATTERN))[: -self.keep]:
            if not self.keep_every or int(old.name.removeprefix("step-")) % self.keep_every:
                doomed = old.with_suffix(".partial")  # half removed it is no checkpoint
                old.rename(doomed)
                shutil.rmtree(doomed)


class Writer(dcp.FileSystemWriter):
    """Writes one checkpoint under its temporary name; rank 0 finishes it once every rank has written its part."""

    def __init__(self, saver: Saver, path: Path, rest: Mapping[str, Any]) -> None:
        super().__init__(path.with_suffix(".partial"))
        self.saver, self.rest, self.final = saver, dict(rest), path

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """See the class."""
        partial = self.final.with_suffix(".partial")
        with open(partial / REST, "wb") as file:
            torch.save(self.rest, file)
            file.flush()
            os.fsync(file.fileno())
        super().finish(metadata, results)
        partial.rename(self.final)
        self.saver.prune()


class Contents(pickle.Unpickler):
    """Reads a table of contents: classes of that format and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Raises UnpicklingError for what is no part of the format."""
        if name not in CONTENTS.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class Reader(dcp.FileSystemReader):
    """Reads one checkpoint; its only pickle is that of :class:`Contents`."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The table of contents."""
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = Contents(file).load()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def contents(path: Path) -> dict[str, TensorStorageMetadata]:
    """Name -> size and type of every tensor of a checkpoint; ValueError where it cannot be read."""
    try:
        return Reader(path).read_metadata().state_dict_metadata  # type: ignore[return-value]
    except (OSError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise unreadable(path, error) from error


def load_rest(path: Path, parts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a checkpoint holds besides tensors: exactly these ``parts``, if given."""
    try:
        saved = torch.load(path / REST, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise unreadable(path, error) from error
    if parts is not None and saved.keys() != parts.keys():
        lacking, extra = sorted(parts.keys() - saved.keys()), sorted(saved.keys() - parts.keys())
        raise ValueError(f"checkpoint {path}: missing {lacking}, unexpected {extra}; another version wrote it")
    return saved


def load_into(path: Path, tensors: Tensors) -> None:
    """Copy a checkpoint into ``tensors``, whole ones or shards, strictly: missing, extra, misshapen keys are named."""
    found = contents(path)
    problems = [f"missing {k}" for k in tensors.keys() - found.keys()]
    problems += [f"unexpected {k}" for k in found.keys() - tensors.keys()]
    problems += [
        f"{k} is {tuple(found[k].size)}, the model's is {tuple(tensors[k].shape)}"
        for k in tensors.keys() & found.keys()
        if found[k].size != tensors[k].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:4])
        raise ValueError(f"{path} does not fit this model in {len(problems)} keys: {shown}")
    _load(path, tensors)


def read(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The whole tensors of a checkpoint whose names begin with ``prefix``, without it; the others are not read.

    In this process alone, however many wrote it.
    """
    wanted = {k: about for k, about in contents(path).items() if k.startswith(prefix)}
    tensors = {k: torch.empty(about.size, dtype=about.properties.dtype) for k, about in wanted.items()}
    _load(path, tensors, no_dist=True)
    return {k.removeprefix(prefix): tensor for k, tensor in tensors.items()}


def _load(path: Path, tensors: Tensors, no_dist: bool = False) -> None:
    try:
        dcp.load(dict(tensors), storage_reader=Reader(path), no_dist=no_dist)
    except CheckpointException as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> ValueError:
    """The sentence for a damaged checkpoint."""
    return ValueError(f"checkpoint {path} cannot be read ({reason(error)}); remove it to resume from an older one")


def reason(error: BaseException) -> str:
    """The first line of what went wrong, on whichever rank."""
    causes: Iterator[BaseException] = (cause for cause, _ in getattr(error, "failures", {}).values())
    cause = next(causes, error)
    return (str(cause) or type(cause).__name__).splitlines()[0]
