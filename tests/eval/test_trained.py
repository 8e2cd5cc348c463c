import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from eval.encoders import load_model
from eval.features import Trial
from eval.reading import VIEW
from eval.tasks.decoder import Options, decoder
from eval.tasks.encoding import Store
from eval.tasks.heads import Wanted
from eval.trained import Trained, join_from_dict, join_to_dict, load_trained
from tests.dense import dataset

CPU = torch.device("cpu")
VIT = "random:vit_tiny?patch_size=4&img_size=16&embed_dim=32&depth=2&num_heads=2&attn_dim=32&attn_heads=2"
CASES = {
    "frozen": ({}, VIT, {}, None),
    "trained": ({}, VIT, {"train": "finetune"}, None),
    "scratch": ({}, "unet?width=4&depth=2", {"decoder": "unet"}, None),
    "random filters": ({}, "rcf?features=8&source=patches", {}, None),
    "windows": ({"size": (24, 16)}, VIT, {"crop": "random"}, "tile"),
    "values": ({"kind": "regression"}, VIT, {}, None),
    "series": ({"frames": 3}, VIT, {"neck": "ltae", "neck_options": {"heads": 4}}, None),
    "labels": ({"kind": "multilabel", "dense": False}, VIT, {"decoder": "linear_classifier"}, None),
}


def trained(case, tmp_path):
    options, source, how, sizing = CASES[case]
    model = load_model(source, seed=3)
    trial = Trial.of(model, dataset(**options), CPU, sizing=sizing, batch_size=4)
    given = Options(**{"decoder": "linear", "epochs": 2, "batch_size": 4, "evaluate_every": 1, **how})
    (outcome,) = decoder(trial, Store(1 << 30), [Wanted(0, range(12))], given)
    logits = list(outcome.logits)
    whole = outcome.trained[0] is not model
    Trained.of(trial, *outcome.trained, whole, (source, 3)).save(tmp_path / "seed-0.safetensors", config="c")
    return trial, logits


@pytest.mark.parametrize("case", CASES)
def test_what_was_trained_predicts_the_same_when_loaded_again(case, tmp_path):
    trial, logits = trained(case, tmp_path)
    again = load_trained(tmp_path)
    found = list(again.predictions(trial.dataset.splits["test"], CPU, 4))
    for a, b in zip(logits, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert (again.kind, again.classes, again.unit) == (trial.dataset.kind, trial.dataset.classes, "m")
    assert again.joined == trial.joined
    stored = sum(p.stat().st_size for p in tmp_path.iterdir())
    assert (stored > 1e5) == (case == "trained")  # an encoder that has not learnt is not written


def test_any_view_is_predicted_at_its_own_size(tmp_path):
    trial, _ = trained("windows", tmp_path)
    view = next(trial.batches("test")).views[VIEW]
    wide = {**view, "imgs": torch.cat([view["imgs"]] * 2, -1)}
    assert load_trained(tmp_path).predict(wide).shape == (4, 3, 24, 32)
    assert load_trained(tmp_path / "seed-0.safetensors").predict(view, (12, 8)).shape == (4, 3, 12, 8)


def test_a_join_survives_as_json():
    joined = Trial.of(load_model(VIT), dataset(), CPU).joined
    joined = dataclasses.replace(joined, channels=(None, *joined.channels[1:]), bands=("B03", "B04"))
    assert join_from_dict(json.loads(json.dumps(join_to_dict(joined)))) == joined


def test_mistakes_name_the_file(tmp_path):
    with pytest.raises(ValueError, match="holds no seed-N.safetensors"):
        load_trained(tmp_path)
    trained("frozen", tmp_path)
    file = tmp_path / "seed-0.safetensors"
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
        tensors = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    other = json.loads(header["trained"]) | {"source": [VIT, 4]}
    save_file(tensors, tmp_path / "other.safetensors", {**header, "trained": json.dumps(other)})
    with pytest.raises(
        ValueError, match="other.safetensors was trained on other weights than those of random:vit_tiny"
    ):
        load_trained(tmp_path / "other.safetensors")
    save_file(tensors, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="plain.safetensors is no trained model: format None"):
        load_trained(tmp_path / "plain.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match="broken.safetensors is not a readable safetensors file"):
        load_trained(tmp_path / "broken.safetensors")
    (tmp_path / "seed-1.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="several: name one of seed-0.safetensors, seed-1.safetensors"):
        load_trained(tmp_path)
