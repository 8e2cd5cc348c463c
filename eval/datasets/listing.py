"""Which samples a folder holds: file names parsed by patterns, no pixel read; the listing of a large set is kept."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import feather

from dinov2 import config

FIELD = re.compile(r"\{(\w+)(?::((?:[^{}]|\{[^{}]*\})*))?\}")
VERSION = 2  # of the kept listings: raised when what they hold changes
SETTLED_NS = 2_000_000_000  # a folder younger than this may still change within its time stamp: not kept

Columns = dict[str, list[Any]]  # a row per sample


class Pattern:
    """A path below a folder with a ``{field}`` wherever names differ: ``S2Hand/{id}_S2Hand.tif``.

    A field stands for one or more characters but "/", or for what a regular expression allows (``{date:[0-9]{8}}``);
    one that occurs twice has the same value in both places.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.fields = tuple(dict.fromkeys(match[1] for match in FIELD.finditer(text)))

    def fill(self, values: Mapping[str, Any]) -> str:
        """The path of these values."""
        return FIELD.sub(lambda match: str(values[match[1]]), self.text)

    def fix(self, values: Mapping[str, str]) -> Pattern:
        """The pattern with some of its fields replaced by these values."""
        return Pattern(FIELD.sub(lambda match: values.get(match[1], match[0]), self.text))

    def parse(self, text: str) -> dict[str, str] | None:
        """The values in ``text``, None if it does not have this form."""
        match = self.regex.fullmatch(text)
        return match and match.groupdict()

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """A named group for each field."""
        return _regex(self.text, {})


def _regex(text: str, known: Mapping[str, str]) -> re.Pattern[str]:
    """``text`` with named groups for its fields, and the values of those that are ``known``."""
    out, end, seen = "", 0, set()
    for match in FIELD.finditer(text):
        name = match[1]
        out += re.escape(text[end : match.start()])
        if name in known:
            out += re.escape(known[name])
        else:
            out += f"(?P={name})" if name in seen else f"(?P<{name}>{match[2] or '[^/]+'})"
        seen.add(name)
        end = match.end()
    return re.compile(out + re.escape(text[end:]))


def take(columns: Columns, rows: Sequence[int]) -> Columns:
    """These rows."""
    return {name: [column[i] for i in rows] for name, column in columns.items()}


def scan(root: Path, pattern: Pattern) -> tuple[Columns, list[Path]]:
    """(a column of values per field of all files that match, in the order of their paths; the folders looked at).

    ``bytes`` is the size of each file. Names that start with a dot are none of the set's (macOS archives carry ``._*``
    beside every file). ValueError where the folder or any file is missing.
    """
    folders: list[Path] = []
    rows = list(_walk(root, pattern.text.partition("::")[0].split("/"), {}, folders))
    if not rows:
        raise ValueError(f"{root} holds no file {pattern.text}; correct the pattern or get the data again")
    columns: Columns = {name: [values[name] for values, _ in rows] for name in rows[0][0]}
    return columns | {"bytes": [size for _, size in rows]}, folders


def _walk(
    folder: Path, parts: list[str], known: dict[str, str], folders: list[Path]
) -> Iterator[tuple[dict[str, str], int]]:
    """Values and size of every file below ``folder`` whose path has the form of ``parts``."""
    literal = 0
    while literal < len(parts) - 1 and set(Pattern(parts[literal]).fields) <= known.keys():
        folder, literal = folder / Pattern(parts[literal]).fill(known), literal + 1
    if known and set(Pattern("/".join(parts[literal:])).fields) <= known.keys():
        # a folder per sample: half a million of them need not be listed, since the file's name is known
        file = folder / Pattern(parts[literal]).fill(known)
        if file.is_file():
            yield known, file.stat().st_size
        else:
            folders.append(folder)  # it may come later
        return
    regex, rest = _regex(parts[literal], known), parts[literal + 1 :]
    folders.append(folder)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"the folder {folder} is missing; set dataset.root or get the data again") from error
    for entry in entries:
        match = None if entry.name.startswith(".") else regex.fullmatch(entry.name)
        if match and rest and entry.is_dir():
            yield from _walk(folder / entry.name, rest, known | match.groupdict(), folders)
        elif match and not rest:
            yield known | match.groupdict(), entry.stat().st_size


def kept(recipe: Mapping[str, Any], build: Callable[[], tuple[Columns, list[Path]]]) -> pa.Table:
    """``build()``'s columns as a table: those of an earlier call if nothing that it looked at has changed since.

    ``recipe`` is all that the columns depend on besides; ``build`` also returns the files and folders that it read.
    They are kept in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache), never beside the data.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eo-ssl" / "datasets"
    path = home / f"{config.fingerprint({**recipe, 'version': VERSION})}.arrow"
    if path.is_file():
        table = feather.read_table(path, memory_map=False)
        seen = json.loads(table.schema.metadata[b"seen"])
        if all(state(Path(p)) == before for p, before in seen.items()):
            return table
    columns, looked_at = build()
    seen = {str(p): state(p) for p in looked_at}
    table = pa.table(columns).replace_schema_metadata({"seen": json.dumps(seen)})
    if max(modified for modified, _ in seen.values()) < time.time_ns() - SETTLED_NS:
        try:
            home.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")  # ranks may write the same listing at the same time
            feather.write_feather(table, partial, compression="zstd")
            partial.replace(path)
        except OSError as error:
            raise ValueError(f"{home} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can") from error
    return table


def state(path: Path) -> list[int]:
    """Time of modification and size; a folder's tell that a name was added to it or taken away; zeros: missing."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return [0, 0]
    return [found.st_mtime_ns, found.st_size]
