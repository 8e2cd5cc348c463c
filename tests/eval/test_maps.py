import base64
import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from eval.datasets import Split
from eval.datasets.base import IGNORE
from eval.encoders import load_model
from eval.features import Trial
from eval.main import main
from eval.maps import COUNT, GREY, painter, palette, prediction_maps, telling
from eval.tasks.decoder import Options, decoder
from eval.tasks.encoding import Store
from eval.tasks.heads import Wanted
from eval.trained import Trained
from tests.dense import dataset

CPU = torch.device("cpu")


def decode(address):
    return imread(io.BytesIO(base64.b64decode(address.partition(",")[2])), format="png")[..., :3]


def trained(data, path, **options):
    """A decoder on pixels, trained for a moment, in a file."""
    trial = Trial.of(load_model("pixelstats"), data, CPU)
    given = {"decoder": "linear", "epochs": 40, "learning_rates": (0.1,), "evaluate_every": 20, **options}
    (outcome,) = decoder(trial, Store(), [Wanted(0, list(range(len(data.splits["train"]))))], Options(**given))
    Trained.of(trial, *outcome.trained, False, ("pixelstats", 0)).save(path)
    return path


def test_colours_differ_from_each_other_and_from_no_label():
    colours = np.vstack([palette(20), GREY])
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 9 * np.eye(21)
    assert apart.min() > 0.3 and colours.min() >= 0 and colours.max() <= 1


def test_the_most_telling_images_in_their_order():
    maps = [np.full((4, 4), IGNORE), np.zeros((4, 4), int), *[np.arange(16).reshape(4, 4) % k for k in (2, 5, 3, 4)]]
    split = Split([f"k{i}" for i in range(6)], None, lambda i: None, maps.__getitem__)
    assert telling(split, "segmentation") == [2, 3, 4, 5] and COUNT == 4
    values = [np.array([[np.nan, 1.0, float(i % 5)]]) for i in range(6)]
    split = Split([f"k{i}" for i in range(6)], None, lambda i: None, values.__getitem__)
    assert telling(split, "regression") == [0, 2, 3, 4]  # ranges 1, 0, 1, 2, 3, 1


def test_a_prediction_has_the_colours_of_the_truth(tmp_path):
    data = dataset("segmentation")
    found = prediction_maps(data, {"pixels": trained(data, tmp_path / "seed-0.safetensors")}, CPU)
    assert list(found.columns) == ["image", "truth", "pixels"] and len(found.captions) == COUNT
    assert [name for name, _ in found.legend] == ["dark", "middle", "bright", "no label"]
    colours = palette(3)
    for key, truth, predicted in zip(found.captions, found.columns["truth"], found.columns["pixels"], strict=True):
        target = data.splits["test"].target(data.splits["test"].keys.index(key))
        labelled = target != IGNORE
        np.testing.assert_allclose(decode(truth)[labelled], colours[target[labelled]], atol=0.003)
        np.testing.assert_allclose(decode(truth)[~labelled], np.array([GREY]), atol=0.003)
        same = np.isclose(decode(predicted)[labelled], colours[target[labelled]], atol=0.003).all(-1)
        assert same.mean() > 0.9  # pixels alone tell these classes apart
    assert prediction_maps(data, {"pixels": tmp_path / "seed-0.safetensors"}, CPU) == found


def test_values_and_pairs(tmp_path):
    heights = dataset("regression", size=(24, 16))
    found = prediction_maps(heights, {"pixels": trained(heights, tmp_path / "seed-0.safetensors")}, CPU)
    assert [name for name, _ in found.legend] == ["0 m", "10 m", "20 m", "no value"]
    assert decode(found.columns["pixels"][0]).shape == (24, 16, 3)
    change = dataset("segmentation", pair=True, frames=2)
    file = trained(change, tmp_path / "seed-1.safetensors", neck="difference")
    found = prediction_maps(change, {"pixels": file}, CPU)
    assert list(found.columns) == ["before", "after", "truth", "pixels"]
    assert found.columns["before"] != found.columns["after"]


def test_a_value_that_never_varies_has_a_colour():
    paint, legend = painter(dataset("regression"), [np.full((2, 2), 3.0)])
    assert np.isfinite(paint(np.full((2, 2), 3.0))).all() and legend[0][0] == "3 m"


def test_large_images_are_thinned_out(tmp_path):
    data = dataset("segmentation", size=(16, 520), counts={"train": 2, "val": 1, "test": 1})
    found = prediction_maps(data, {}, CPU)
    assert decode(found.columns["truth"][0]).shape == (6, 174, 3)
    assert decode(found.columns["image"][0]).shape == pytest.approx((6, 174, 3))


@pytest.mark.realdata
def test_the_report_of_a_call_shows_its_maps(tmp_path, realdata):
    config = "configs/eval/realdata_dense/enmap/linear.yaml"
    options = [f"dataset.root={realdata / 'enmap'}", "task.epochs=1", "seeds=[0]", "resamples=10"]
    assert main(["--model-obj", "pixelstats", "--config-obj", config, "--output-dir", str(tmp_path), *options]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count('<div class="scroll strips">') == 2 and "no label" in page  # two test images
    assert "| pixelstats | floor | 1.00 [1.00, 1.00] | 100 % |" in (tmp_path / "leaderboard.md").read_text()
