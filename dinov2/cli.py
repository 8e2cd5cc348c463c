"""The one path from a script's ``main`` to its exit code.

A script is thin: it puts the project root in front of the import path (its own folder would shadow ``eval``, and
``python eval/main.py`` must work from a bare clone as it does after installation), then hands its ``main`` over::

    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])  # parents[0] for a script in the root itself

    from dinov2.cli import run

    if __name__ == "__main__":
        run(main)
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

# What a user can cause and mend. Anything else is our mistake and keeps its traceback.
USER_ERRORS = (ValueError, FloatingPointError, OSError, EOFError, OmegaConfBaseException, YAMLError)


def one_line(error: BaseException) -> str:
    """The error as one line; file errors name the file first."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split())


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call ``main(arguments)`` and exit with what it returns (None: 0).

    User errors become ``error: <one line>`` on stderr and exit code 2, Ctrl-C becomes 130. ``--debug``, taken out of
    the arguments, prints the traceback too.
    """
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = main(arguments)
    except (KeyboardInterrupt, *USER_ERRORS) as error:
        if debug:
            traceback.print_exc()
        interrupted = isinstance(error, KeyboardInterrupt)
        print("interrupted" if interrupted else f"error: {one_line(error)}", file=sys.stderr)
        code = 130 if interrupted else 2
    sys.exit(code)
