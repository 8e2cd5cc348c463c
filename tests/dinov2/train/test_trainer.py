import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from dinov2 import distributed
from dinov2.data.sample import ImageSpec, Sample
from dinov2.data.shards import write_shards
from dinov2.models.export import load_export
from dinov2.sensors import SENSORS
from dinov2.train import checkpoint, trainer
from dinov2.train.build import build
from dinov2.train.checkpoint import Saver
from dinov2.train.log import Log
from dinov2.train.trainer import rest, resume, tensors, train
from tests import tiny
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[3]


def run(folder: str, objective: str, shard_set: str, name: str, stops: list[int | None]) -> dict[str, torch.Tensor]:
    """Train, stopping and starting anew at ``stops``; every tensor of the last checkpoint."""
    cfg = tiny.config(Path(folder), objective, Path(shard_set))
    if distributed.world() == 4:  # does not divide 6 samples
        cfg.data.batch_size = 8
    for stop in stops:
        train(cfg, Path(folder) / name, stop_at=stop)
    return checkpoint.read(checkpoint.latest(Path(folder) / name))


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert a.keys() == b.keys() and not different, f"{len(different)} of {len(a)} differ: {different[:3]}"


ACCUMULATED = [f"{name}+accumulated" for name in sorted(tiny.OBJECTIVES)]
EXACT = ["moco+queue+exact", "barlow+exact"]


@pytest.mark.parametrize("objective", [*sorted(tiny.OBJECTIVES), "moco+queue", *ACCUMULATED, *EXACT])
def test_resumed_equals_uninterrupted_bit_for_bit(objective, tmp_path):
    path = str(tiny.shards(tmp_path / "shards"))
    whole = run(str(tmp_path), objective, path, "whole", [None])
    assert_equal(whole, run(str(tmp_path), objective, path, "parts", [1, 4, None]))


ON_RANKS = [*sorted(tiny.OBJECTIVES), "dino+accumulated", "byol+accumulated", "moco+queue+exact"]


def run_all(folder: str, shard_set: str, stops: list[int | None]) -> dict[str, torch.Tensor]:
    """Every objective in turn: one start of the processes serves them all."""
    found = {name: run(folder, name, shard_set, f"{name}-{len(stops)}", stops) for name in ON_RANKS}
    return {f"{name} {k}": v for name, state in found.items() for k, v in state.items()}


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted_on_ranks(world, tmp_path):
    path = str(tiny.shards(tmp_path / "shards"))
    whole = run_ranks(run_all, world, str(tmp_path), path, [None], timeout=300)
    parts = run_ranks(run_all, world, str(tmp_path), path, [3, None], timeout=300)
    for rank in range(world):
        assert_equal(whole[0], parts[rank])


def test_accumulated_micro_batches_equal_one_batch_where_samples_do_not_meet(tmp_path):
    path = tiny.shards(tmp_path / "shards")
    cfg = tiny.config(tmp_path, "mae", path)
    train(cfg, tmp_path / "one")
    cfg.data.micro_batch = 2
    train(cfg, tmp_path / "three")
    one, three = (checkpoint.read(checkpoint.latest(tmp_path / n), "objective.") for n in ("one", "three"))
    for name, value in one.items():
        found = three[name]
        if name.endswith("qkv.bias"):  # softmax forgets the keys' bias: Adam makes steps of what is rounding
            (q, _, v), (q_found, _, v_found) = value.chunk(3), found.chunk(3)
            value, found = torch.cat([q, v]), torch.cat([q_found, v_found])
        torch.testing.assert_close(found, value, rtol=1e-3, atol=2e-5)


def test_a_run_explains_itself(tmp_path):
    cfg = tiny.config(tmp_path, "simclr", tiny.shards(tmp_path / "shards"))
    export = train(cfg, tmp_path / "run")
    encoder, header = load_export(export)
    assert header["info"]["step"] == 6 and header["info"]["config"]["optim"]["base_lr"] == 1e-3
    assert set(header["normalisation"]) == {"sentinel1_rtc", "sentinel2_l2a"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3, 4, 5, 6]
    assert {"grad_norm", "lr", "images_per_s", "data_wait"} <= losses[0].keys()
    assert [line["step"] for line in lines if "health/rank" in line] == [3, 6]
    assert (tmp_path / "run" / "config.yaml").exists() and "torch" in (tmp_path / "run" / "environment.txt").read_text()
    view = {"imgs": torch.randn(1, 3, 16, 16), "chn_ids": torch.tensor([[700, -1, 1234]])}
    assert encoder(view).shape == (1, 24)  # bands of no training sensor


def test_metrics_after_the_last_checkpoint_of_a_killed_run_are_written_once(tmp_path):
    cfg = tiny.config(tmp_path, "simclr", tiny.shards(tmp_path / "shards"))
    train(cfg, tmp_path / "run", stop_at=5)
    shutil.rmtree(checkpoint.latest(tmp_path / "run"))  # as if killed between logging step 5 and saving it
    train(cfg, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_another_config_in_the_same_folder_is_refused(tmp_path):
    path = tiny.shards(tmp_path / "shards")
    train(tiny.config(tmp_path, "simclr", path), tmp_path / "run", stop_at=1)
    with pytest.raises(ValueError, match=r"another config \(train\.seed: 0 -> 1\)"):
        train(tiny.config(tmp_path, "simclr", path, seed=1), tmp_path / "run")


def test_a_checkpoint_of_another_encoder_is_refused_by_key(tmp_path):
    cfg = tiny.config(tmp_path, "simclr", tiny.shards(tmp_path / "shards"))
    train(cfg, tmp_path / "run", stop_at=2)
    cfg.model.registers = 1
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"step-00000002 does not fit.*missing objective\.encoder\.register_tokens"):
        train(cfg, tmp_path / "run")


@pytest.mark.parametrize("name", ["dino", "byol", "moco+queue"])
def test_the_student_of_a_run_drops_paths_and_its_teacher_none(name, tmp_path):
    objective = build(tiny.config(tmp_path, name, tiny.shards(tmp_path / "shards"))).objective
    assert all(m.training for m in objective.encoder.modules())
    assert not any(m.training for m in objective.export().modules())


def test_a_complete_run_says_so_and_stays(tmp_path, capsys):
    cfg = tiny.config(tmp_path, "simclr", tiny.shards(tmp_path / "shards"))
    first = train(cfg, tmp_path / "run").read_bytes()
    assert train(cfg, tmp_path / "run").read_bytes() == first
    assert "is complete: 6 steps are done" in capsys.readouterr().out


def test_elevation_needs_its_codes(tmp_path):
    spec = ImageSpec("dem", 10, ("elevation",), "float32", "metre")
    pixels = np.random.default_rng(0).normal(size=(8, 1, 32, 32)).astype(np.float32)
    write_shards((Sample(f"d{i}", {spec.key: x}, {spec.key: spec}) for i, x in enumerate(pixels)), tmp_path / "dem")
    with pytest.raises(ValueError, match="the shards hold dem-10m: set model.terrain=true"):
        train(tiny.config(tmp_path, "simclr", tmp_path / "dem"), tmp_path / "run")


def test_an_encoder_of_fixed_bands_sees_them_in_their_places_and_tells_their_order(tmp_path):
    cfg = tiny.config(tmp_path, "mae", tiny.shards(tmp_path / "shards"))
    cfg.model.update({"embed": "conv", "in_chans": 6})
    with pytest.raises(ValueError, match="all bands of one sensor, and the shards hold sentinel1_rtc-10m VV, VH; sen"):
        build(cfg)
    cfg.data.images = ["sentinel2_l2a"]
    parts = build(cfg)
    names = ["B02", "B03", "B04", "B08", "B05", "B11"]
    assert {sensor: list(bands) for sensor, bands in parts.normalisation.table.items()} == {"sentinel2_l2a": names}
    ids = next(parts.stream.batches()).views["image"].chn_ids
    assert {tuple(row) for row in ids.tolist()} == {tuple(SENSORS["sentinel2_l2a"].channel_ids(names))}
    cfg.model.in_chans = 4
    with pytest.raises(ValueError, match="in_chans=4: .*choose by data.images, or prepare them with --keep-bands"):
        build(cfg)


def refusal(cfg: DictConfig, folder: Path) -> str:
    """What training says against a configuration; empty where it runs."""
    try:
        train(cfg, folder)
    except ValueError as error:
        return str(error)
    return ""


def other_options_on_rank_1(folder: str, shard_set: str) -> str:
    own = Path(folder) / str(distributed.rank())
    own.mkdir()
    return refusal(tiny.config(own, "simclr", Path(shard_set), log_every=1 + distributed.rank()), Path(folder) / "run")


@pytest.mark.distributed
def test_ranks_with_another_configuration_are_found_at_the_start(tmp_path):
    sentences = run_ranks(other_options_on_rank_1, 2, str(tmp_path), str(tiny.shards(tmp_path / "shards")))
    told = "rank 1 and rank 0 differ in log_every: 2, log_every: 1: all nodes need the same configuration and packages"
    assert sentences == [told] * 2


def another_package_on_rank_1(folder: str, shard_set: str) -> str:
    if distributed.rank() == 1:  # found before the one that is installed
        info = Path(folder) / "node" / "webdataset-0.0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: webdataset\nVersion: 0.0.1\n")
        sys.path.insert(0, str(info.parent))
    return refusal(tiny.config(Path(folder) / str(distributed.rank()), "simclr", Path(shard_set)), Path(folder) / "run")


@pytest.mark.distributed
def test_ranks_with_other_packages_are_found_at_the_start(tmp_path):
    for rank in "01":
        (tmp_path / rank).mkdir()
    sentences = run_ranks(another_package_on_rank_1, 2, str(tmp_path), str(tiny.shards(tmp_path / "shards")))
    installed = importlib.metadata.version("webdataset")
    assert all(f"differ in webdataset 0.0.1, webdataset {installed}:" in sentence for sentence in sentences)
    assert not (tmp_path / "run").exists()


def a_folder_of_its_own_on_rank_1(folder: str, shard_set: str) -> str:
    own = Path(folder) / str(distributed.rank())  # as on a disk of each node
    own.mkdir()
    trainer.VISIBLE_WITHIN = 1.0  # in this process only
    return refusal(tiny.config(own, "simclr", Path(shard_set)), own / "run")


@pytest.mark.distributed
def test_a_folder_that_some_ranks_do_not_see(tmp_path):
    sentences = run_ranks(a_folder_of_its_own_on_rank_1, 2, str(tmp_path), str(tiny.shards(tmp_path / "shards")))
    assert all(s.startswith("rank 1 does not see") and "that all nodes share" in s for s in sentences), sentences


def start_on_a_port_in_use(port: int) -> str:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        distributed.init()
    except ValueError as error:
        return str(error)
    return ""


def test_a_port_in_use_is_named(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # given back at the end
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert start_on_a_port_in_use(port).startswith(f"port {port} is in use on 127.0.0.1: set MASTER_PORT")


def test_a_damaged_file_of_metrics_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged"):
        Log(tmp_path, total=2, resumed_step=1, track=[])


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    cfg = tiny.config(tmp_path, "simclr", tiny.shards(tmp_path / "shards"))
    train(cfg, tmp_path / "run", stop_at=2)
    path = checkpoint.latest(tmp_path / "run")
    parts = build(cfg)
    resume(cfg, tmp_path / "run", parts)
    parts.objective.state_dict()["projector.0.bias"][0] = float("inf")
    shutil.rmtree(path)
    with Saver(tmp_path / "run", keep=1, keep_every=0, asynchronous=False) as saver:
        saver.save(2, tensors(parts), rest(cfg, parts, 2))
    with pytest.raises(ValueError, match=r"step 2: .*loss.* not finite.*Samples of this batch: s0"):
        train(cfg, tmp_path / "run")
    assert checkpoint.latest(tmp_path / "run") == path


def test_a_destructive_learning_rate_is_stopped_soon_and_a_healthy_one_never(tmp_path):
    cfg = tiny.config(tmp_path, "simclr", tiny.shards(tmp_path / "shards"), steps=40, health_every=2)
    cfg.model.layer_scale, cfg.train.collapse_std = None, 0.05
    train(cfg, tmp_path / "healthy")
    cfg.optim.base_lr = 0.1
    with pytest.raises(ValueError, match=r"collapsed: embedding std .* lower optim\.base_lr"):
        train(cfg, tmp_path / "collapsed")
    lines = [json.loads(line) for line in (tmp_path / "collapsed" / "metrics.jsonl").read_text().splitlines()]
    low = [line["step"] for line in lines if line.get("health/std", 1.0) < 0.05]
    assert max(line["step"] for line in lines) - low[0] <= 4  # three readings, the first at the bound


def test_evaluation_is_called_on_schedule_and_logged(tmp_path):
    cfg = tiny.config(tmp_path, "simclr", tiny.shards(tmp_path / "shards"), evaluate_every=3)

    def evaluate(export: Path, step: int) -> dict[str, float]:
        load_export(export)
        return {"eval/step": float(step)}

    train(cfg, tmp_path / "run", evaluate=evaluate)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval/step"] for line in lines if "eval/step" in line] == [3.0, 6.0]


def test_an_evaluation_that_a_kill_prevented_is_made_up_and_logged_once(tmp_path):
    cfg = tiny.config(tmp_path, "simclr", tiny.shards(tmp_path / "shards"), evaluate_every=2)
    made = []

    def evaluate(export: Path, step: int) -> dict[str, float]:
        made.append(step)
        if made == [2, 4]:
            raise KeyboardInterrupt  # after the checkpoint of step 4
        return {"eval/step": float(step)}

    with pytest.raises(KeyboardInterrupt):
        train(cfg, tmp_path / "run", evaluate=evaluate)
    train(cfg, tmp_path / "run", evaluate=evaluate, stop_at=4)
    train(cfg, tmp_path / "run", evaluate=evaluate)  # resumed where it was evaluated
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/step" in line] == [2, 4, 6] and made[:3] == [2, 4, 4]


def command(config: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "--config-file", str(config), "--output-dir", str(out), *more]


def test_killed_at_any_moment_the_run_goes_on_to_the_same_weights(tmp_path):
    path = tiny.shards(tmp_path / "shards")
    config = tiny.write_config(tmp_path / "a.yaml", tiny.raw_config("simclr", path, steps=40, save_every=1, keep=2))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    subprocess.run(command(config, tmp_path / "whole"), check=True, capture_output=True, env=environment)
    kills = 0
    for wait in (2, 3, 1):  # kill -9 a moment after a new checkpoint appeared: saving is most of what this run does
        process = subprocess.Popen(command(config, tmp_path / "killed"), stdout=subprocess.DEVNULL, env=environment)
        start = checkpoint.latest(tmp_path / "killed")
        while process.poll() is None and checkpoint.latest(tmp_path / "killed") in (None, start):
            time.sleep(0.001)
        time.sleep(0.003 * wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    subprocess.run(command(config, tmp_path / "killed"), check=True, capture_output=True, env=environment)
    last = "checkpoints/step-00000040"
    a, b = (checkpoint.read(tmp_path / n / last, "objective.") for n in ("whole", "killed"))
    assert_equal(a, b)


KILLED_WHILE_WRITING = """
import os, signal, sys
calls = 0
def fsync(fd, flush=os.fsync):  # the file is written under its temporary name, not yet renamed
    global calls
    calls += os.readlink(f"/proc/self/fd/{fd}").endswith("rest.pt")  # checkpoints only
    if calls == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(fd)
os.fsync = fsync
import train
train.main(sys.argv[1:])
"""


@pytest.mark.distributed
@pytest.mark.parametrize("launch", [[], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]])
def test_killed_while_a_checkpoint_is_written(launch, tmp_path):
    path = tiny.shards(tmp_path / "shards")
    config = tiny.write_config(tmp_path / "a.yaml", tiny.raw_config("simclr", path, save_every=1))
    script = tmp_path / "killed.py"
    script.write_text(KILLED_WHILE_WRITING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(program: Path, name: str) -> int:
        words = [
            sys.executable,
            *launch,
            str(program),
            "--config-file",
            str(config),
            "--output-dir",
            str(tmp_path / name),
        ]
        return subprocess.run(words, capture_output=True, env=environment).returncode

    assert start(ROOT / "train.py", "whole") == 0
    assert start(script, "killed") != 0
    saved = sorted(p.name for p in (tmp_path / "killed" / "checkpoints").iterdir())
    assert saved == ["step-00000001", "step-00000002", "step-00000003.partial"]
    assert start(ROOT / "train.py", "killed") == 0
    last = "checkpoints/step-00000006"
    a, b = (checkpoint.read(tmp_path / n / last, "objective.") for n in ("whole", "killed"))
    assert_equal(a, b)


def fails(config: Path, out: Path, *more: str) -> str:
    done = subprocess.run(command(config, out, *more), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path):
    path = tiny.shards(tmp_path / "shards")
    config = tiny.write_config(tmp_path / "a.yaml", tiny.raw_config("simclr", path))
    out = tmp_path / "run"
    assert "temprature" in (line := fails(config, out, "objective.temprature=1")) and "temperature" in line
    assert "objective 'simcrl'; did you mean 'simclr'?" in fails(config, out, "objective.name=simcrl")
    assert "patch_size 5 does not divide" in fails(config, out, "model.patch_size=5")
    assert "fewer than the global batch_size of 64" in fails(config, out, "data.batch_size=64")
    assert "no 'sentinel2_l1c'" in fails(config, out, "data.images=[sentinel2_l1c]")
    assert "'data.shards': it takes a list" in fails(config, out, f"data.shards={path}")
    assert "names a set twice" in fails(config, out, f"data.shards=[{path},{path}]")
    assert "train.save_every is 0" in fails(config, out, "train.save_every=0")
    assert "optim.clip is 0" in fails(config, out, "optim.clip=0")
    assert "train.track names 'wandbb'; did you mean 'wandb'?" in fails(config, out, "train.track=[wandbb]")
    assert "5 to 3 bands" in fails(config, out, "objective.bands=[5,3]")
    assert "float16 needs a GPU" in fails(config, out, "train.precision=float16")
    assert "name configs in train.evaluations" in fails(config, out, "train.evaluate_every=2")
    assert "no.yaml does not exist" in fails(config, out, "train.evaluations=[no.yaml]")
    assert "that --dry-run plans for" in fails(config, out, "--ranks=8")
    assert not out.exists()
    (tmp_path / "file").write_text("")
    assert "file" in fails(config, tmp_path / "file" / "run")
    shard = path / "shard-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    assert "shard-000001.tar" in fails(config, out)
    shard.unlink()
    assert "shard-000001.tar" in (line := fails(config, out)) and "absent" in line
    flipped = bytearray(whole)
    flipped[2000] ^= 1
    shard.write_bytes(flipped)
    assert "shard-000001.tar" in fails(config, out, "data.max_damage=0")


def test_dry_run_writes_nothing(tmp_path):
    path = tiny.shards(tmp_path / "shards")
    config = tiny.write_config(tmp_path / "a.yaml", tiny.raw_config("dino", path))
    done = subprocess.run(command(config, tmp_path / "run", "--dry-run"), check=True, capture_output=True, text=True)
    assert "trainable parameters" in done.stdout and "seconds per step" in done.stdout
    assert not (tmp_path / "run").exists()
