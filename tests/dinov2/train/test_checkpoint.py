import os
import pickle
import subprocess
import time
from pathlib import Path

import pytest
import torch

from dinov2.models.export import load_export
from dinov2.train import checkpoint
from dinov2.train.checkpoint import Saver
from dinov2.train.export import export_checkpoint
from dinov2.train.trainer import train
from tests import tiny

REST = {"step": 0, "words": "a"}


def save(folder: Path, step: int, size: int = 4, **options) -> Path:
    with Saver(folder, **{"keep": 2, "keep_every": 0, "asynchronous": False} | options) as saver:
        saver.save(step, {"x.a": torch.full((size,), float(step)), "y": torch.zeros(())}, {**REST, "step": step})
    return checkpoint.latest(folder)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_newest_is_found_and_old_ones_go(asynchronous, tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step, asynchronous=asynchronous)
    assert checkpoint.latest(tmp_path).name == "step-00000100"
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    assert checkpoint.read(checkpoint.latest(tmp_path), "x.")["a"].tolist() == [100.0] * 4
    assert checkpoint.load_rest(checkpoint.latest(tmp_path), REST) == {"step": 100, "words": "a"}


def test_every_so_many_steps_one_is_kept_for_good(tmp_path):
    for step in range(10, 80, 10):
        save(tmp_path, step, keep=1, keep_every=30)
    assert names(tmp_path) == ["step-00000030", "step-00000060", "step-00000070"]


def test_a_half_written_folder_is_never_found(tmp_path):
    save(tmp_path, 5)
    half = tmp_path / "checkpoints" / "step-00000010.partial"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    assert checkpoint.latest(tmp_path).name == "step-00000005"
    save(tmp_path, 10)
    assert not half.exists()


def test_an_asynchronous_save_keeps_what_was_and_not_what_comes(tmp_path):
    x = torch.zeros(1000)
    with Saver(tmp_path, keep=3, keep_every=0, asynchronous=True) as saver:
        for step in (1, 2, 3):
            x.fill_(step)
            saver.save(step, {"x": x}, REST)
        x.fill_(9)
    for step in (1, 2, 3):
        assert checkpoint.read(tmp_path / "checkpoints" / f"step-{step:08d}")["x"].unique().tolist() == [step]


def test_a_slow_disk_is_waited_for_by_the_next_save_only(tmp_path, monkeypatch):
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (time.sleep(0.3), flush(file)))
    x = {"x": torch.zeros(4)}
    with Saver(tmp_path, keep=3, keep_every=0, asynchronous=True) as saver:
        begin = time.perf_counter()
        saver.save(1, x, REST)
        first = time.perf_counter() - begin
        assert checkpoint.latest(tmp_path) is None
        saver.save(2, x, REST)
        assert time.perf_counter() - begin > 0.6 > first
        assert checkpoint.latest(tmp_path).name == "step-00000001"
    assert checkpoint.latest(tmp_path).name == "step-00000002"


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "rest.pt"])
def test_a_damaged_file_is_named(file, tmp_path):
    path = save(tmp_path, 5)
    (path / file).write_bytes((path / file).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step-00000005 cannot be read"):
        checkpoint.load_rest(path, REST)
        checkpoint.read(path)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, evil = save(tmp_path, 5), Payload(tmp_path / "executed")
    whole = (path / ".metadata").read_bytes()
    (path / ".metadata").write_bytes(pickle.dumps(evil))
    with pytest.raises(ValueError, match=r"step-00000005 cannot be read \(it names posix.system\)"):
        checkpoint.read(path)
    (path / ".metadata").write_bytes(whole)
    torch.save({"x": evil}, path / "rest.pt")
    with pytest.raises(ValueError, match="step-00000005"):
        checkpoint.load_rest(path, REST)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_keeps_the_previous_checkpoint(asynchronous, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    try:
        save(mount, 5)
        with pytest.raises(OSError, match=r"step-00000010: .*intact: step-00000005"):
            save(mount, 10, size=1_000_000, asynchronous=asynchronous)
        assert names(mount) == ["step-00000005"]
        assert checkpoint.read(checkpoint.latest(mount))["x.a"].tolist() == [5.0] * 4
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_an_unwritable_path_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file", 5)


def test_strict(tmp_path):
    path = save(tmp_path, 5)
    good = {"x.a": torch.zeros(4), "y": torch.ones(())}
    checkpoint.load_into(path, good)
    assert good["x.a"].tolist() == [5.0] * 4 and good["y"] == 0
    with pytest.raises(ValueError, match="step-00000005 does not fit this model in 1 keys: missing z"):
        checkpoint.load_into(path, {**good, "z": torch.zeros(1)})
    with pytest.raises(ValueError, match="unexpected y"):
        checkpoint.load_into(path, {"x.a": good["x.a"]})
    with pytest.raises(ValueError, match=r"x.a is \(4,\), the model's is \(3,\)"):
        checkpoint.load_into(path, {**good, "x.a": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"missing \['more'\], unexpected \['words'\]; another version"):
        checkpoint.load_rest(path, {"step": 1, "more": 1})


def test_an_encoder_is_exported_without_what_training_needs(tmp_path):
    cfg = tiny.config(tmp_path, "dino", tiny.shards(tmp_path / "shards"), save_every=3)
    final = train(cfg, tmp_path / "run")
    newest = checkpoint.latest(tmp_path / "run")
    for state in newest.glob("*.distcp"):  # the tensors that an export needs are a small part of the file
        assert state.stat().st_size > 3 * final.stat().st_size
    export_checkpoint(newest, tmp_path / "encoder.safetensors")
    (encoder, info), (expected, about) = load_export(tmp_path / "encoder.safetensors"), load_export(final)
    assert info == about
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in encoder.state_dict().items())
