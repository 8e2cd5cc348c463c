"""Every option of a configuration, by name: the surface grows on purpose only (edit frozen_keys.txt too)."""

from pathlib import Path

from omegaconf import OmegaConf

from dinov2 import config, objectives
from dinov2.train import schema
from eval import schema as evaluation
from eval.datasets import READERS
from eval.datasets.layers import Layer
from eval.datasets.targets import Target

FROZEN = Path(__file__).with_name("frozen_keys.txt")


def keys() -> list[str]:
    parts = {
        "data": schema.Data,
        "augment": schema.Augment,
        "series": schema.Series,
        "model": schema.Model,
        "optim": schema.Optim,
    }
    parts["train"] = schema.Train
    parts |= {f"objective({name})": objectives.options(name) for name in objectives.OBJECTIVES}
    parts |= {f"dataset({name})": config.signature_schema(name, reader) for name, reader in READERS.items()}
    parts |= {"dataset.layer": Layer, "dataset.target": Target}
    parts |= {f"task({name})": config.signature_schema(name, task) for name, task in evaluation.TASKS.items()}
    parts |= {"model(evaluation)": evaluation.Treatment, "running": evaluation.Running, "labels": evaluation.Labels}
    return [f"{part}.{key}" for part, schema_ in parts.items() for key in OmegaConf.structured(schema_)]


def test_the_options_are_the_frozen_ones():
    assert keys() == FROZEN.read_text().split(), "an option was added or removed: write it into frozen_keys.txt"


def test_every_pretraining_config_holds_differences_only():
    for path in sorted((Path(__file__).parents[1] / "configs" / "pretrain").rglob("*.yaml")):
        resolved, written = schema.load(path, ["data.shards=[x]"]), config.read_yaml(path)
        sections = {"data": schema.Data, "model": schema.Model, "optim": schema.Optim, "train": schema.Train}
        defaults = {part: OmegaConf.structured(section) for part, section in sections.items()}
        for part, values in written.items():
            default = defaults.get(str(part))
            for key, value in values.items():
                assert key in resolved[part]
                same = default is not None and not OmegaConf.is_missing(default, key) and default[key] == value
                assert not same, f"{path.name}: {part}.{key} repeats the default"
