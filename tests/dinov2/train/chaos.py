"""Train while ranks, and whole runs, are killed at random moments; one line of JSON says what happened.

    python tests/dinov2/train/chaos.py CONFIG FOLDER RANKS KILLS SEED

Ranks are forked from this process, which has imported everything and computed nothing: a start takes a moment. The
first run in FOLDER ends undisturbed, and kills come at any moment of as much time as it took. Runs follow each other
until KILLS kills have been made; then the last one ends undisturbed too.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[3])

import torch  # noqa: E402

from dinov2 import distributed  # noqa: E402
from dinov2.train import schema  # noqa: E402
from dinov2.train.trainer import train  # noqa: E402

PATIENCE = datetime.timedelta(seconds=60)  # for the ranks that are left to notice a loss
FORK = multiprocessing.get_context("fork")


def rank_main(rank: int, world: int, port: int, config: Path, run: Path, overrides: list[str]) -> None:
    """Train in a forked process."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        distributed.init(PATIENCE)
    train(schema.load(config, overrides), run)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def attempt(world: int, config: Path, run: Path, overrides: list[str], kill: Callable | None) -> list[int | None]:
    """Start the ranks of a run, let ``kill`` do its work, and wait for them; their exit codes."""
    shared = (world, free_port(), config, run, overrides)
    ranks = [FORK.Process(target=rank_main, args=(rank, *shared)) for rank in range(world)]
    for process in ranks:
        process.start()
    if kill:
        kill(ranks)
    deadline = time.monotonic() + 3 * PATIENCE.total_seconds()
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    hung = sum(process.is_alive() for process in ranks)
    assert not hung, f"{hung} ranks neither went on nor ended"
    return [process.exitcode for process in ranks]


def main(config: Path, folder: Path, world: int, kills: int, seed: int) -> None:
    """See the module."""
    rng, made, runs, halves, whole = random.Random(seed), 0, 0, 0, 0.0

    def kill(ranks: list[multiprocessing.Process]) -> None:
        nonlocal made
        time.sleep(rng.uniform(0.0, whole))
        doomed = ranks if rng.random() < 0.5 else [rng.choice(ranks)]
        made += any(process.is_alive() for process in doomed)
        for process in doomed:
            process.kill()

    while made < kills or runs == 0:
        run, begin, clean = folder / f"run-{runs}", time.monotonic(), False
        overrides = [f"train.save_async={bool(runs % 2)}"]
        while not clean:
            disturb = kill if runs and made < kills else None
            clean = attempt(world, config, run, overrides, disturb) == [0] * world
            halves += len(list(run.glob("checkpoints/*.partial")))
        whole = whole or time.monotonic() - begin  # kills come at any moment of a run on this machine
        runs += 1
    print(json.dumps({"kills": made, "runs": runs - 1, "caught_while_writing": halves}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
