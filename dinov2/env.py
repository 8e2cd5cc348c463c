"""Settings of this machine: environment variables and the optional file ``.env`` in the project root.

``.env.example`` lists and explains every variable; all are optional.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from dotenv import load_dotenv

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@functools.cache
def load(path: Path = ROOT / ".env") -> None:
    """Read the file once; variables that are set already win, a file that does not exist is no error."""
    load_dotenv(path)


def expand(path: str) -> str:
    """``path`` (or URL) with ``~``, ``$NAME`` and ``${NAME}`` replaced; ValueError names a variable that is not set."""
    load()

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ValueError(f"{path}: the variable {name} is not set; set it in the shell or in {ROOT / '.env'}")
        return os.environ[name]

    return os.path.expanduser(VARIABLE.sub(value, path))
