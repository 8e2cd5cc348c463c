import os
import subprocess

import pytest
import torch
from torch import nn

from dinov2.train import checkpoint


def save(folder, step, size=4, keep=2):
    return checkpoint.save(folder, step, {"step": step, "x": torch.full((size,), float(step))}, keep)


def test_newest_is_found_and_old_ones_go(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step)
    assert checkpoint.latest(tmp_path).name == "step-00000100.pt"
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000010.pt", "step-00000100.pt"]
    assert checkpoint.load(checkpoint.latest(tmp_path))["x"].tolist() == [100.0] * 4


def test_a_half_written_file_is_never_found(tmp_path):
    save(tmp_path, 5)
    half = tmp_path / "checkpoints" / "step-00000010.partial"
    half.write_bytes(b"PK\x03\x04 half")
    assert checkpoint.latest(tmp_path).name == "step-00000005.pt"
    save(tmp_path, 10)
    assert not half.exists()


def test_a_damaged_file_is_named(tmp_path):
    path = save(tmp_path, 5)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step-00000005\.pt cannot be read"):
        checkpoint.load(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/executed",)

    path = tmp_path / "evil.pt"
    torch.save({"x": Payload()}, path)
    with pytest.raises(ValueError, match=r"evil\.pt"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    try:
        save(mount, 5)
        with pytest.raises(OSError, match=r"step-00000010\.pt.*intact: step-00000005\.pt"):
            save(mount, 10, size=1_000_000)
        assert checkpoint.load(checkpoint.latest(mount))["step"] == 5
        assert not list((mount / "checkpoints").glob("*.partial"))
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_an_unwritable_path_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file", 5)


def test_strict(tmp_path):
    module, path = nn.Linear(2, 3), tmp_path / "a.pt"
    good = module.state_dict()
    checkpoint.restore(module, good, path)
    with pytest.raises(ValueError, match=r"a\.pt does not fit this model in 1 keys: missing bias"):
        checkpoint.restore(module, {"weight": good["weight"]}, path)
    with pytest.raises(ValueError, match="unexpected extra"):
        checkpoint.restore(module, {**good, "extra": good["bias"]}, path)
    with pytest.raises(ValueError, match=r"weight is \(2, 3\), the model's is \(3, 2\)"):
        checkpoint.restore(module, {**good, "weight": good["weight"].T}, path)
