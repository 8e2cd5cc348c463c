import json

import onnx
import pytest
import torch

from dinov2.models import build_encoder
from dinov2.models.export import from_pretrained, load_export, save_export
from dinov2.models.zoo import load_encoder
from dinov2.train.trainer import train
from eval import export
from eval.encoders import load_model
from eval.graphs import run_onnx, run_program, trace
from tests import tiny

IDS = [493, 559, 664, 827]


def view(b=3, c=3, size=16):
    imgs = torch.randn(b, c, size, size, generator=torch.Generator().manual_seed(0))
    return imgs, torch.tensor([IDS[:c]] * b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run."""
    folder = tmp_path_factory.mktemp("runs")
    cfg = tiny.config(folder, "simclr", tiny.shards(folder / "world"), steps=2, save_every=1)
    train(cfg, folder / "run")
    return folder / "run"


def exported(obj, output, *words):
    export.main(["--model-obj", str(obj), "--output", str(output), *words])
    return output


@torch.no_grad()
def test_run_checkpoint_and_folder_make_the_same_export(finished, tmp_path):
    run = exported(finished, tmp_path / "run")
    step = exported(finished / "checkpoints/step-00000002", tmp_path / "step")
    again = exported(run, tmp_path / "again")
    names = {"README.md", "config.json", "model.safetensors"}
    assert {p.name for p in run.iterdir()} == names
    told = (run / "config.json").read_bytes()  # with the digest of the tensors
    assert told == (step / "config.json").read_bytes() == (again / "config.json").read_bytes()
    imgs, ids = view()
    original, x = load_export(finished / "model_final.safetensors")[0], {"imgs": imgs, "chn_ids": ids}
    assert torch.equal(from_pretrained(run)(x), original(x))
    evaluated = load_model(str(run))
    assert torch.equal(evaluated.embed(x), original(x)) and evaluated.name == "run"
    assert evaluated.normalisation == load_model(str(finished)).normalisation


def agrees(found, wanted):
    """Whether (cls, patches) are those of forward_features."""
    for outputs, name in zip(found, ("cls", "patches"), strict=True):
        torch.testing.assert_close(outputs, wanted[name], atol=1e-5, rtol=0)


@torch.no_grad()
def test_folded_weights_and_program_equal_the_encoder(finished, tmp_path):
    """Traced with the channels of both sensors; here fewer of them, and other batches."""
    output = exported(finished, tmp_path / "hub", "--folded", "--format", "torch_export")
    encoder = load_export(finished / "model_final.safetensors")[0]
    for b, c in ((1, 1), (3, 3)):
        imgs, ids = view(b, c)
        wanted = encoder.forward_features(x := {"imgs": imgs, "chn_ids": ids})
        agrees(run_program(output / "model.pt2", imgs, ids), wanted)
        folded = from_pretrained(output).forward_features(x)
        agrees([folded["cls"], folded["patches"]], wanted)


def test_a_folded_encoder_has_no_random_floor(finished, tmp_path):
    output = exported(finished, tmp_path / "hub", "--folded")
    with pytest.raises(ValueError, match="model.safetensors holds folded weights, which cannot be drawn: name the run"):
        load_model(f"random:{output}")


@pytest.mark.slow
@torch.no_grad()
def test_onnxruntime_equals_the_encoder(finished, tmp_path):
    """For any batch and number of channels; the conversion alone takes ten seconds."""
    output = exported(finished, tmp_path / "hub", "--folded", "--format", "onnx")
    encoder = load_export(finished / "model_final.safetensors")[0]
    for b, c in ((1, 1), (3, 3)):
        imgs, ids = view(b, c)
        agrees(run_onnx(output / "model.onnx", imgs, ids), encoder.forward_features({"imgs": imgs, "chn_ids": ids}))
    about = {p.key: p.value for p in onnx.load(output / "model.onnx").metadata_props}["eossl"]
    header = json.loads((output / "config.json").read_text())
    assert json.loads(about)["normalisation"] == header["normalisation"]
    imgs, _ = view(1, 1)
    unknown = run_onnx(output / "model.onnx", imgs, torch.tensor([[842]]))[0]
    assert unknown.isnan().all()  # a graph cannot raise; numbers would look right


@torch.no_grad()
def test_an_unfolded_program_takes_channels_it_never_saw():
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny", 4, 8, depth=1, embed_dim=16, num_heads=2, attn_dim=24, attn_heads=4).eval()
    program = trace(encoder, [493], 8)
    imgs, ids = torch.randn(3, 2, 8, 8), torch.tensor([[842, -3]] * 3)
    cls, _ = program.module()(imgs, ids)
    torch.testing.assert_close(cls, encoder({"imgs": imgs, "chn_ids": ids}), atol=1e-5, rtol=0)


def test_the_card_tells_data_objective_results_and_licence(finished, tmp_path):
    evaluation = {"config": "tiny/knn", "dataset": "tiny", "task": "knn", "metric": "accuracy", "unit": "", "n": 60}
    row = evaluation | {"model": "run", "role": "pretrained", "value": 0.9, "ci_low": 0.85, "ci_high": 0.95, "seed": 0}
    floor = row | {"model": "pixelstats", "role": "floor", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (row, floor)))
    words = ["--licence", "cc-by-4.0", "--results", str(tmp_path / "tables")]
    card = (exported(finished, tmp_path / "hub", *words) / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "Objective `simclr`, 2 steps of 6 samples, seed 0." in card
    assert "| world | 36 | unknown |  |" in card
    assert "| sentinel2_l2a | B02 | 493 | reflectance |" in card and "| sentinel1_rtc | VV | -1 | db |" in card
    assert "run beats pixelstats by more than the intervals (+40.0 points)" in card and "90.0 [85.0, 95.0]" in card


def test_a_released_architecture_of_ours_and_its_licence(tmp_path):
    torch.save(load_encoder("panopticon_vitb14", "random", depth=1).state_dict(), tmp_path / "teacher.pth")
    output = exported(f"panopticon_vitb14@{tmp_path}/teacher.pth?depth=1", tmp_path / "hub")
    imgs, ids = view(1, 3, 28)
    original = load_encoder("panopticon_vitb14", tmp_path / "teacher.pth", depth=1)
    x = {"imgs": imgs, "chn_ids": ids}
    assert torch.equal(from_pretrained(output)(x), original(x))
    assert "None: random" in (exported("panopticon_vitb14@random?depth=1", tmp_path / "r") / "README.md").read_text()
    assert "license: other" in (output / "README.md").read_text()  # "not confirmed" is no identifier
    assert "Released by its publisher as `panopticon_vitb14`" in (output / "README.md").read_text()


def test_encoders_of_series_are_weights_only(tmp_path):
    inputs = {"s2": ["sentinel2_l2a", "B04", "B08"], "s1": ["sentinel1_rtc", "VV", "VH"]}
    encoder = build_encoder("timeseries", inputs=inputs, embed_dim=8, width=16, depth=1, num_heads=2)
    norm = {"sentinel1_rtc": {"unit": "db", "bands": {"VV": [-12.0, 4.0]}}}
    save_export(tmp_path / "model_final.safetensors", encoder, normalisation=norm, info={"step": 7})
    output = exported(tmp_path, tmp_path / "hub", "--licence", "mit")
    again = from_pretrained(output).state_dict()
    assert all(torch.equal(again[key], x) for key, x in encoder.state_dict().items())
    card = (output / "README.md").read_text()
    assert "encoder(series)  # dinov2.data.series.Series, standardised -> [B, 8]" in card
    assert "Nothing is recorded about it." in card and "| sentinel1_rtc | VV | -1 | db | -12 | 4 |" in card
    with pytest.raises(ValueError, match="has no patch embedding of ours: safetensors is its only format"):
        exported(tmp_path, tmp_path / "graph", "--format", "torch_export")


def test_what_an_export_replaces(finished, tmp_path, monkeypatch):
    """Graphs of other weights go; files that no export wrote stay."""
    output = exported(finished, tmp_path / "hub", "--folded", "--format", "torch_export")
    assert (output / "model.pt2").is_file()
    assert not (exported(finished, output) / "model.pt2").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("mine")
    with pytest.raises(ValueError, match="mine has a README.md that no export wrote and this one would replace"):
        exported(finished, tmp_path / "mine")
    assert [p.read_text() for p in (tmp_path / "mine").iterdir()] == ["mine"]
    monkeypatch.setattr(export, "ONNX_LIMIT", 2**10)
    with pytest.raises(ValueError, match="--format onnx holds up to 2 GiB, the weights are 0.0 GiB: take torch_export"):
        exported(finished, tmp_path / "large", "--format", "onnx")


def test_graph_of_fixed_bands(tmp_path):
    encoder = build_encoder("vit_tiny", 4, 8, embed="conv", in_chans=5, depth=1, embed_dim=16, num_heads=2)
    save_export(tmp_path / "model_final.safetensors", encoder, normalisation={}, info={})
    output = exported(tmp_path, tmp_path / "hub", "--format", "torch_export", "--size", "12")
    imgs, ids = torch.randn(3, 5, 12, 12), torch.arange(5).repeat(3, 1)
    with torch.no_grad():
        agrees(run_program(output / "model.pt2", imgs, ids), encoder.eval().forward_features({"imgs": imgs}))
    with pytest.raises(ValueError, match="only an encoder with a spectral patch embedding"):
        exported(tmp_path, tmp_path / "folded", "--folded")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "tflite"], "--format 'tflite' is not one of safetensors, torch_export, onnx"),
        (["--results", "nowhere"], "--results: there is no nowhere/results.jsonl"),
        (["--folded", "--sensors", "sentinel9"], "unknown sensor 'sentinel9'"),
        (["--sensors", "sentinel2_l2a"], "--sensors is for --folded and graphs"),
        (["--folded", "--size", "16"], "--size for graphs"),
        (["--format", "torch_export", "--size", "0"], "--size 0: it must be a multiple of the patch size 4"),
        (["--format", "torch_export", "--size", "18"], "--size 18: it must be a multiple of the patch size 4"),
    ],
)
def test_mistakes(finished, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        exported(finished, tmp_path / "hub", *words)
    assert not (tmp_path / "hub").exists()  # nothing is half done
    with pytest.raises(ValueError, match="the architecture of dofa is its publisher's"):
        exported("dofa@random?depth=1", tmp_path / "hub")
