"""The listing, from the files that jobs leave behind."""

import os
from pathlib import Path

import pytest

from slurm.status import DONE, LOGS, read, status


def leave(run: Path, job: str, out: str, err: str = "") -> None:
    """What a job of one task leaves in a run folder."""
    logs = run / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    (logs / f"{job}_submitted.pkl").write_bytes(b"")
    (logs / f"{job}_0_log.out").write_text(f"Starting with JobEnvironment\n{out}\n")
    (logs / f"{job}_0_log.err").write_text(err)


def test_states_steps_and_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue: jobs that are over
    leave(tmp_path / "good", "999999001", DONE)
    (tmp_path / "good" / "metrics.jsonl").write_text('{"step": 8, "images_per_s": 41.7}\n{"step": 9}\n{"step": 1')
    gloo = "[rank2]: ConnectionError: rank 2, step 6: rank 3 did not answer ([/x/gloo/pair.cc:537] reset by peer)"
    leave(tmp_path / "bad", "999999002", "", f"Traceback\n  a\n{gloo}\nsrun: error: n2: task 3: Killed\n")
    leave(tmp_path / "grid", "999999003_0", DONE)
    leave(tmp_path / "grid", "999999003_1", "", "ValueError: no such band")
    status(tmp_path)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["good"].split() == ["good", "999999001", "done", "9", "42"]
    assert "failed" in lines["bad"] and gloo.removeprefix("[rank2]: ")[:80] in lines["bad"]
    assert "1 done, 1 failed" in lines["grid"] and "ValueError: no such band" in lines["grid"]


def test_only_the_newest_submission_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    leave(tmp_path, "999999001", "", "ValueError: old")
    os.utime(tmp_path / LOGS / "999999001_submitted.pkl", (1, 1))
    leave(tmp_path, "999999002", DONE)
    found = read(tmp_path / LOGS)
    assert found is not None and (found.job, found.state, found.error) == ("999999002", "done", "")


def test_nothing_was_submitted(tmp_path):
    with pytest.raises(ValueError, match="nothing below this folder was submitted"):
        status(tmp_path)
