import os
import subprocess
import sys
from pathlib import Path

import pytest

PREAMBLE = """
import errno, os, signal, sys
from omegaconf import OmegaConf
from dinov2.cli import run
def main(words):
    {body}
run(main)
"""


def script(tmp_path: Path, body: str, *words: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "script.py"
    path.write_text(PREAMBLE.format(body=body))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, str(path), *words], capture_output=True, text=True, env=environment)


def test_success_keeps_the_output_and_the_code(tmp_path: Path) -> None:
    done = script(tmp_path, "print(words); return 3 if '--three' in words else None", "a", "--debug", "b=1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "['a', 'b=1']\n", "")
    assert script(tmp_path, "return 3").returncode == 3


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raise ValueError('sensor x has no band y;\\n  known: z')", "error: sensor x has no band y; known: z"),
        ("raise FloatingPointError('loss is nan at step 3')", "error: loss is nan at step 3"),
        ("open('/no/such/file')", "error: /no/such/file: No such file or directory"),
        ("os.write(os.open('/dev/full', os.O_WRONLY), b'x')", "error: No space left on device"),
        ("os.mkdir('/proc/x')", "error: /proc/x: No such file or directory"),
        ("raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), 'out')", "error: out: Permission denied"),
        ("OmegaConf.create({'a': '${nothere}'}).a", "error: Interpolation key 'nothere' not found full_key: a"),
        ("OmegaConf.create('a: [1')", "error: while parsing a flow sequence"),
        ("os.kill(os.getpid(), signal.SIGINT)", "interrupted"),
    ],
)
def test_a_user_error_is_one_line(tmp_path: Path, body: str, line: str) -> None:
    done = script(tmp_path, body)
    assert done.returncode == (130 if line == "interrupted" else 2)
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_debug_adds_the_traceback_and_keeps_the_code(tmp_path: Path) -> None:
    done = script(tmp_path, "raise ValueError('no')", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr and done.stderr.endswith("error: no\n")


def test_our_own_mistakes_keep_their_traceback(tmp_path: Path) -> None:
    done = script(tmp_path, "assert False, 'broken'")
    assert done.returncode == 1 and "Traceback" in done.stderr and "broken" in done.stderr
