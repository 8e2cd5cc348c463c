import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster; tests that ask for it are skipped where there can be none."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # short: a socket's path has at most 108 characters
        own = Cluster(Path(folder))
        try:
            own.start()
            yield own
        finally:
            own.stop()
