import os
from pathlib import Path

# Before torch is imported: two threads under other load are slower than one, and one is reproducible. Ranks of the
# tests live on this machine; gloo otherwise looks the host name up, which fails on machines without a network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-curves", action="store_true", help="write tests/golden_curves anew (make golden)")


@pytest.fixture(scope="session")
def update_curves(request: pytest.FixtureRequest) -> bool:
    """Whether golden curves are to be written instead of compared."""
    return request.config.getoption("--update-curves")


def folder_from(variable: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    folder = Path(os.environ[variable])
    if not folder.is_dir():
        pytest.fail(f"{variable} is set to {folder}, which is not a folder")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Recorded outputs of the original implementations."""
    return folder_from("EOSSL_GOLDEN")


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Real satellite files."""
    return folder_from("EOSSL_REALDATA")
