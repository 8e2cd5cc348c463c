import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.common import Plan, Skip, slug, write
from data_prep.main import CHECKS, SOURCES, TOOLS, main, parse
from data_prep.sandbox import plan
from dinov2.data.shards import verify

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [sys.executable, str(ROOT / "data_prep/main.py")]


def sandbox(out: Path, *words: str) -> list[str]:
    return ["sandbox", "--out", str(out), "--sensors", "sentinel1_rtc", "--chip-m", "160", *words]


def test_the_script_works_from_any_folder_and_prints_its_tables(tmp_path):
    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([*SCRIPT, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    done = run(*sandbox(Path("set"), "--samples", "5", "--samples-per-shard", "3"))
    assert done.returncode == 0 and "5 samples in 2 shards (5 samples written)" in done.stdout
    again = run(*sandbox(Path("set"), "--samples", "5", "--samples-per-shard", "3"))
    assert "2 shards kept from an earlier run" in again.stdout
    assert "sentinel1_rtc  VH    db    1,280" in run("stats", "set").stdout
    longer = run(*sandbox(Path("set"), "--samples", "6", "--samples-per-shard", "3"))
    assert longer.returncode == 2 and longer.stderr.startswith(
        "error: set/shard-000000.tar was written with other settings"
    )
    with open(tmp_path / "set/shard-000001.tar", "r+b") as file:
        file.seek(700)
        file.write(b"\x00\xff")
    bad = run("verify", "set")
    assert bad.returncode == 2 and "shard-000001.tar" in bad.stdout and "Traceback" not in bad.stderr


def test_a_killed_run_continues_to_the_same_bytes(tmp_path):
    words = ("--samples", "400", "--samples-per-shard", "10")
    process = subprocess.Popen([*SCRIPT, *sandbox(tmp_path / "killed", *words)])
    while not (tmp_path / "killed/shard-000001.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/index.parquet").exists()
    main(sandbox(tmp_path / "killed", *words))
    main(sandbox(tmp_path / "whole", *words))
    files = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "killed").iterdir() if not p.name.startswith(".")}
    assert verify(tmp_path / "killed").problems == []


def test_every_source_explains_itself(capsys):
    for command in (*SOURCES, *TOOLS, *CHECKS):
        with pytest.raises(SystemExit) as stop:
            parse([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert stop.value.code == 0 and f"python data_prep/main.py {command} " in text


@pytest.mark.parametrize("command", ["", "sandbox", "folder", "pixels", "timeseries", "verify"])
def test_a_command_starts_without_torch_and_pandas(command):
    code = f"import sys\nfrom data_prep.main import parse\ntry:\n    parse({[*filter(None, [command]), '--help']})\n"
    code += "except SystemExit:\n    print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done


def test_skipped_items_are_counted_and_an_empty_set_is_refused(tmp_path):
    real = plan(parse(sandbox(tmp_path, "--samples", "4")))
    some = Plan(range(4), lambda i: Skip("odd") if i % 2 else real.make(i), {}, {})
    shards, summary = write(some, tmp_path / "some", samples_per_shard=2, compression="zstd", workers=1)
    assert str(summary) == "2 samples written; 2 skipped: odd" and len(shards) == 2
    with pytest.raises(ValueError, match="no sample is left: 0 samples written; 4 skipped: none"):
        none = Plan(range(4), lambda i: Skip("none"), {}, {})
        write(none, tmp_path / "none", samples_per_shard=2, compression=None, workers=1)


def test_keys_are_made_of_the_letters_that_a_sample_allows():
    assert slug("Sub Dir/S2A_T31.é") == "sub_dir_s2a_t31_" and slug("__a") == "a" and slug("é") == "x"
