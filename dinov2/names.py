"""Names that users write: the nearest known one, and options that nothing takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def suggest(name: str, known: Sequence[str]) -> str:
    """'; did you mean X?' where a known name is close, else a full stop: ends a sentence that names ``name``."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def check_options(what: str, given: Iterable[str], *takers: Callable[..., Any], more: Sequence[str] = ()) -> None:
    """ValueError for the first of the ``given`` options that is no keyword-only argument of the ``takers``.

    ``what`` has the options, ``more`` are further ones that it takes.
    """
    parameters = [p for taker in takers for p in inspect.signature(taker).parameters.values()]
    known = list(dict.fromkeys([p.name for p in parameters if p.kind is p.KEYWORD_ONLY] + list(more)))
    for option in given:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(f"{what} has no option {option!r}{suggest(option, known)} Known: {listed}")
