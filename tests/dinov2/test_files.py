import subprocess
import sys
from pathlib import Path

import pytest

from dinov2.files import atomic

ROOT = Path(__file__).resolve().parents[2]
OTHER = (
    "import sys; from pathlib import Path; from dinov2.files import write_atomic as w; w(Path(sys.argv[1]), 'other')"
)


def test_two_processes_may_write_the_same_file_at_once(tmp_path):
    path = tmp_path / "index"
    with atomic(path) as file:
        file.write(b"mine")
        subprocess.run([sys.executable, "-c", OTHER, path], cwd=ROOT, check=True)
        assert path.read_text() == "other"
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "index"
    path.write_text("old")
    with pytest.raises(KeyError), atomic(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
