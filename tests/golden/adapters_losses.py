"""Golden adapters of losses, heads, schedules and parameter groups."""

from tests.golden.harness import Adapter

ADAPTERS: dict[tuple[str, str], Adapter] = {}
