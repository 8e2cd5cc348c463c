"""What docs/migration.md and docs/evaluation.md name exists."""

import fnmatch
import re
from pathlib import Path

import pytest
import yaml

from dinov2.models.zoo import ZOO
from eval import predict, schema
from eval.datasets import DATASETS
from eval.decoders import DECODERS, NECKS
from eval.joining import NORMALISATIONS
from eval.labels import STRATEGIES
from eval.leaderboard import read_groups
from eval.losses import LOSSES
from eval.main import parser
from eval.tasks.crops import CROPS
from eval.tasks.heads import OPTIMIZERS, SCHEDULES
from eval.tasks.targets import TRAINED

ROOT = Path(__file__).resolve().parents[1]
TABLE = [line.strip("|").split(" | ") for line in (ROOT / "docs/migration.md").read_text().splitlines()]
HERE = sorted({token for cells in TABLE if len(cells) == 3 for token in re.findall(r"`([^`]+)`", cells[1])})
VALUES = {
    "task.optimizer": OPTIMIZERS, "task.schedule": SCHEDULES, "model.normalisation": NORMALISATIONS,
    "task.decoder": DECODERS, "task.neck": NECKS, "task.loss": LOSSES, "task.crop": CROPS,
    "labels.strategy": STRATEGIES, "task.train": TRAINED, "model.size": ("resize", "tile", "interpolate"),
    "model.missing": ("error", "drop", "zero"), "dataset.name": DATASETS, "task.name": schema.TASKS,
}  # fmt: skip
TASKS = [{"name": "decoder"}, {"name": "linear"}, {"name": "knn"}]


def loads(task, override):
    """Whether an evaluation with this task takes the option."""
    try:
        schema.load({"dataset": {"name": "sen1floods11"}, "task": task}, [override])
    except ValueError:
        return False
    return True


def test_the_tables_are_read():
    assert len(HERE) > 50 and {"task.decoder=muster", "--averages FILE", "dataset.root"} <= set(HERE)


@pytest.mark.parametrize("token", HERE)
def test_a_counterpart_exists(token):
    command, _, option = token.partition(" ")
    flag, _, rest = (option if command == "predict" else token).partition(" ")
    if flag.startswith("--"):
        assert flag in (predict.parser() if command == "predict" else parser()).format_help()
        for name in re.findall(r"(\w+)@", rest):
            assert name in ZOO
        for path in re.findall(r"configs/\S+", rest):
            assert (ROOT / path).exists()
    elif flag == "torchrun":
        assert (ROOT / rest.split()[-1]).is_file()
    elif "/" in token and "=" not in token:
        assert (ROOT / token).exists()
    else:
        key, _, value = token.partition("=")
        assert any(loads(task, token if value else f"{key}={x}") for task in TASKS for x in ("null", "x"))
        assert not value or key not in VALUES or value in VALUES[key]


def test_an_option_that_is_not_there_is_found_out():
    assert not any(loads(task, "task.n_epochs=3") for task in TASKS)


def test_the_page_on_evaluation_names_what_is_there(tmp_path):
    page = (ROOT / "docs/evaluation.md").read_text()
    example, averages = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    (tmp_path / "averages.yaml").write_text(yaml.safe_dump(averages))
    assert schema.load(example).task["epochs"] == 16
    assert read_groups(tmp_path / "averages.yaml") == averages
    names = [path.relative_to(schema.CONFIGS).with_suffix("").as_posix() for path in schema.CONFIGS.rglob("*.yaml")]
    assert all(fnmatch.filter(names, pattern) for patterns in averages.values() for pattern in patterns)
    for path in re.findall(r"(?:configs|eval|slurm)/[\w/]+(?:\.\w+)?", page):
        assert (ROOT / path).exists(), path
    for flag in re.findall(r"(?<=[ `])--[a-z-]+", page):
        assert flag in parser().format_help() or flag in ("--nproc", "--gpus-per-node"), flag
    for key in re.findall(r"`((?:task|running|model|labels)\.\w+=\S+?)[ `]", page):
        assert any(loads(task, key) for task in TASKS), key
