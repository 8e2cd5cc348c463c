import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (ROOT, *(ROOT / name for name in ("eval", "data_prep", "slurm", "benchmarks", "docs/examples")))
SCRIPTS = [p for folder in FOLDERS for p in sorted(folder.glob("*.py")) if '__name__ == "__main__"' in p.read_text()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_script_starts_from_anywhere_and_explains_itself(script: Path, tmp_path: Path) -> None:
    # The script's own folder comes first on the import path and would shadow eval, datasets or train. Whether the
    # project is installed or not must make no difference, so this holds in a bare clone and after `make install`.
    done = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage:" in done.stdout and script.relative_to(ROOT).as_posix() in done.stdout  # with an example


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_hands_its_main_to_the_command_line_helper(script: Path) -> None:
    last = script.read_text().rstrip().splitlines()[-1].strip()
    assert last in ("run(main)", "cli.run(main)")
