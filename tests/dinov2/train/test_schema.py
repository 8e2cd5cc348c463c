"""Options that cannot be are refused by name before anything is read."""

import pytest

from dinov2.train import schema
from tests import tiny


@pytest.mark.parametrize(
    "name, option, said",
    [
        ("simclr", "data.workers=-1", "data.workers is -1; it must be at least 0"),
        ("simclr", "model.depth=0", "model.depth is 0; it must be greater than 0"),
        ("simclr", "optim.base_lr=-1e-3", "optim.base_lr is -0.001; it must be at least 0"),
        ("simclr", "optim.warmup_steps=-5", "optim.warmup_steps is -5; it must be at least 0"),
        ("simclr", "train.evaluate_every=-1", "train.evaluate_every is -1; it must be at least 0"),
        ("simclr", "train.collapse_patience=0", "train.collapse_patience is 0; it must be greater than 0"),
        ("moco", "objective.queue=-1", "objective.queue is -1; it must be at least 0"),
        ("mae", "objective.target_bands=0", "objective.target_bands is 0; it must be greater than 0"),
        ("dino", "objective.prototypes=0", "objective.prototypes is 0; it must be greater than 0"),
        ("dino", "optim.teacher_temp=0", "optim.teacher_temp is 0.0; it must be greater than 0"),
        ("mae", "model.arch=phileo_cnn", "objective mae hides patches from the encoder, which phileo_cnn looks at"),
        ("geo_aware", "objective.decoder_dim=0", "objective.decoder_dim is 0; it must be greater than 0"),
        ("dino", "objective.koleo_weight=-0.1", "objective.koleo_weight is -0.1; it must be at least 0"),
    ],
)
def test_what_cannot_be_is_named(name, option, said, tmp_path):
    path = tiny.write_config(tmp_path / "a.yaml", tiny.raw_config(name, tmp_path / "shards"))
    schema.load(path)
    with pytest.raises(ValueError, match=said):
        schema.load(path, [option])


def test_every_bounded_option_exists(tmp_path):
    found = {}
    for name in tiny.OBJECTIVES:
        cfg = schema.load(tiny.write_config(tmp_path / "a.yaml", tiny.raw_config(name, tmp_path / "shards")))
        for part in cfg:
            found.setdefault(part, set()).update(cfg[part])
    for bounds in (schema.POSITIVE, schema.NOT_NEGATIVE):
        assert all(set(keys) <= found[part] for part, keys in bounds.items())
