import pytest
import torch

from dinov2.config import plain
from dinov2.models.export import read_export_info
from dinov2.models.zoo import ZOO, load_encoder
from dinov2.train.trainer import train
from eval.encoders import expand_models, fresh, home_of, load_model, name_of
from tests import tiny


def view(b=2):
    imgs = torch.randn(b, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"imgs": imgs, "chn_ids": torch.tensor([493, 559, 664, 827]).repeat(b, 1)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny.shards(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("objective", ["simclr", "dino"])
@torch.no_grad()
def test_a_checkpoint_is_the_encoder_that_its_run_exports(objective, shards, tmp_path):
    cfg = tiny.config(tmp_path, objective, shards, steps=2, save_every=1)
    with torch.enable_grad():
        train(cfg, tmp_path / "run")
    last, final = (load_model(str(tmp_path / "run" / f)) for f in ("checkpoints/step-00000002", ""))
    x = view()
    assert torch.equal(last.embed(x), final.embed(x)) and last.normalisation == final.normalisation
    first = load_model(str(tmp_path / "run/checkpoints/step-00000001"))
    assert not torch.equal(first.embed(x), final.embed(x)) and first.digest != last.digest
    assert (first.name, final.name) == ("run/step-00000001", "run") and first.role == "pretrained"


def test_a_run_that_is_not_finished_names_its_checkpoints(shards, tmp_path):
    cfg = tiny.config(tmp_path, "simclr", shards, steps=2, save_every=1)
    train(cfg, tmp_path / "run")
    (tmp_path / "run/model_final.safetensors").unlink()
    with pytest.raises(ValueError, match="not finished; evaluate one of its checkpoints, as .*step-00000002"):
        expand_models(str(tmp_path / "run"))
    checkpoint = str(tmp_path / "run/checkpoints/step-00000002")
    assert expand_models(f"{tmp_path}/run/checkpoints/*")[-1] == checkpoint
    assert home_of(checkpoint) == tmp_path / "run/eval_step-00000002"
    floor = load_model(fresh(checkpoint))
    assert (floor.role, floor.name) == ("floor", "random:run/step-00000002")
    assert floor.normalisation == load_model(checkpoint).normalisation
    assert not torch.equal(floor.embed(view()), load_model(checkpoint).embed(view()))


@pytest.fixture(scope="module")
def panopticon():
    """The released architecture, random."""
    torch.manual_seed(0)
    return load_encoder("panopticon_vitb14", "random").state_dict()


def prefixed(prefix, state):
    return {prefix + k: v for k, v in state.items()}


HEAD = {"dino_head.mlp.0.weight": torch.ones(1)}
LAYOUTS = {
    "teacher_checkpoint.pth": lambda s: {"teacher": {**prefixed("backbone.", s), **HEAD}},
    "model_final.pth": lambda s: {
        "model": {**prefixed("teacher.backbone.", s), **prefixed("student.backbone.", s)}, "iteration": 3
    },
}  # fmt: skip


@pytest.mark.parametrize("file", LAYOUTS)
@torch.no_grad()
def test_files_that_panopticon_writes_are_known_by_their_keys(file, panopticon, tmp_path):
    path = tmp_path / "pan" / file
    path.parent.mkdir()
    torch.save(LAYOUTS[file](panopticon), path)
    model = load_model(str(path))
    state = model.network.encoder.state_dict()
    assert all(torch.equal(state[k], v) for k, v in panopticon.items()) and state.keys() == panopticon.keys()
    assert model.expects == ZOO["panopticon_vitb14"].expects and not model.expects.bands
    assert model.name == name_of(str(path)) == ("pan" if file == "model_final.pth" else "pan/teacher_checkpoint")
    assert home_of(str(path)) == tmp_path / "pan" / f"eval_{path.stem}"
    if file == "model_final.pth":
        folder = str(path.parent)
        assert expand_models(folder) == expand_models(str(tmp_path)) == expand_models(f"{tmp_path}/*") == [folder]
        assert load_model(folder).digest == model.digest and name_of(folder) == "pan"


def test_files_of_no_or_of_several_models(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "mine.pth")
    with pytest.raises(ValueError, match="mine.pth has the keys and sizes of no released encoder: say which it is as"):
        load_model(str(tmp_path / "mine.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth has the keys and sizes of no released"):
        load_model(str(tmp_path / "list.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="text.pth is not a readable weights file"):
        load_model(str(tmp_path / "text.pth"))


def test_the_floor_of_an_export_is_its_architecture(shards, tmp_path):
    cfg = tiny.config(tmp_path, "mae", shards, steps=2)
    train(cfg, tmp_path / "run")
    config = read_export_info(tmp_path / "run/model_final.safetensors")["encoder"]
    floor = load_model(fresh(str(tmp_path / "run")))
    assert plain(floor.network.encoder.config) == config and floor.network.native == config["img_size"]
