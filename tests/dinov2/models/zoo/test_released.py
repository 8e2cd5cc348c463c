"""Every released model: its published file, other models' files, what it expects and gives."""

from pathlib import Path

import pytest
import torch

from dinov2.models.state import read_weights
from dinov2.models.zoo import MODELS, ZOO, dinov2, load_encoder, panopticon, phileo, phileo_unet
from dinov2.sensors import SENSORS
from tests.dinov2.models.zoo.published import SIZES, VIT, channels, example, published, tiny

PAGE = Path(__file__).resolve().parents[4] / "docs/models.md"
FIELD = [name for model in MODELS if model not in (dinov2, panopticon, phileo, phileo_unet) for name in model.RELEASES]
PHILEO = [*phileo.RELEASES, *phileo_unet.RELEASES]  # of one size, or with maps of several: test_phileo.py
FAMILIES = {release.family: name for name, release in reversed(ZOO.items())}  # the first model of each


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_published_file_loads_saves_and_loads(name: str, tmp_path) -> None:
    model = tiny(name)
    torch.save(published(name, model.state_dict()), tmp_path / "published.pth")
    loaded = tiny(name, tmp_path / "published.pth")
    torch.save(loaded.state_dict(), tmp_path / "saved.pth")
    again = tiny(name, tmp_path / "saved.pth")
    x = example(name)
    for copy in (loaded, again):
        assert not copy.training
        assert copy.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in copy.state_dict().items())
    assert torch.equal(again(x), loaded(x)) and torch.equal(loaded(x), model.eval()(x))


@pytest.mark.parametrize("name", ZOO)
def test_a_file_of_any_other_model_is_refused_by_name(name: str) -> None:
    family = ZOO[name].family
    for other, theirs in FAMILIES.items():
        if theirs != FAMILIES[family]:
            content = published(theirs, tiny(theirs).state_dict())
            with pytest.raises(ValueError, match=f"a state dict: this looks like {other}, not {family}"):
                tiny(name, content)


def full_size_file(name: str) -> dict:
    """The published file on the meta device; CROMA's holds all modalities."""
    together = [n for n in ZOO if n.rsplit("_", 1)[0] == name.rsplit("_", 1)[0]] if "croma" in name else [name]
    state = {}
    with torch.device("meta"):
        for one in together:
            state |= load_encoder(one, "random").state_dict()
    return published(name, state)


@pytest.mark.parametrize("name", ZOO)
def test_a_file_of_another_size_is_refused_by_name(name: str) -> None:
    relatives = [n for n in ZOO if n != name and ZOO[n].family == ZOO[name].family and ZOO[n].url != ZOO[name].url]
    for other in relatives:
        content = full_size_file(other)
        size = other.rsplit("_", 1)[0] if "croma" in other else other
        with torch.device("meta"), pytest.raises(ValueError, match=f"; these are weights of .*{size}"):
            load_encoder(name, content)


@pytest.mark.parametrize("name", FAMILIES.values())
def test_every_key_is_accounted_for(name: str) -> None:
    state = tiny(name).state_dict()
    with pytest.raises(ValueError, match="unknown keys: (parts.)?stranger.weight"):
        tiny(name, {**state, "stranger.weight": torch.ones(1)})
    for key in state:
        with pytest.raises(ValueError, match=f"missing keys: .*{key}|looks like DINOv2.*, not DINO"):
            tiny(name, {k: v for k, v in state.items() if k != key})


@pytest.mark.parametrize("name", ["scalemae", "ssl4eo_mae", "spectralgpt"])
@torch.no_grad()
def test_the_final_norm_may_be_absent_as_a_whole(name: str) -> None:
    model = tiny(name)
    model.norm.weight.fill_(1.0), model.norm.bias.fill_(0.0)
    cut = {k: v for k, v in model.state_dict().items() if not k.startswith("norm.")}
    assert torch.equal(tiny(name, cut)(x := example(name)), model.eval()(x))


def width(model) -> int:
    """Of its embedding: RemoteCLIP's is projected."""
    return model.projection.out_features if hasattr(model, "projection") else model.embed_dim


@pytest.mark.parametrize("name", FIELD)
def test_what_it_expects_is_consistent(name: str) -> None:
    expects = ZOO[name].expects
    for bands in expects.bands:
        sensor = SENSORS[bands.sensor]
        assert {b.name for b in sensor.bands} >= set(bands.names) and sensor.unit == bands.unit
        assert len(set(bands.names)) == len(bands.names)
    assert len(expects.mean) == len(expects.std) and len(expects.mean) in (0, channels(name))
    assert expects.scaling in ("standardise", "two_sigma", "clip")
    with torch.device("meta"):
        model = load_encoder(name, "random")
        if ZOO[name].family == "DOFA":  # its filters depend on values
            assert model.embed_dim == expects.dim and max(expects.layers) == len(model.blocks) - 1
            return
        x = example(name, expects.size, expects.size, "meta")
    side = expects.size // expects.patch
    maps = model.maps(x, expects.layers)
    assert len(maps) == len(expects.layers) and max(expects.layers) == len(model.blocks) - 1
    frames = (expects.frames,) if expects.frames > 1 else ()
    assert {m.shape for m in maps} == {torch.Size((2, expects.dim, *frames, side, side))}
    assert model(x).shape == (2, width(model))


@pytest.mark.parametrize("name", FIELD)
@torch.no_grad()
def test_other_sizes_and_shapes_of_images(name: str) -> None:
    model = tiny(name).eval()
    maps = model.maps(example(name, 24, 48), [0, 1])
    assert [m.shape[-2:] for m in maps] == [(3, 6)] * 2 and all(m.isfinite().all() for m in maps)
    assert model(example(name, 48, 24)).shape == (2, width(model))
    with pytest.raises(ValueError, match="patch size 8 must divide"):
        model(example(name, 36, 32))
    with pytest.raises(ValueError, match="the encoder has blocks 0..[13]; cannot return"):
        model.maps(example(name), [7])


@pytest.mark.parametrize("name", [n for n in FIELD + PHILEO if ZOO[n].family != "DOFA"])
@torch.no_grad()
def test_fixed_bands(name: str) -> None:
    model, x = tiny(name).eval(), example(name)
    with pytest.raises(ValueError, match=f"takes {channels(name)} fixed bands, the image has {channels(name) + 1}"):
        model(torch.cat([x, x[:, :1]], 1))
    hidden = torch.zeros(2, channels(name), dtype=torch.bool)
    hidden[:, 1] = True
    zeroed = x.clone()
    zeroed[:, 1] = 0.0
    assert torch.equal(model({"imgs": x, "chn_ids": hidden, "spec_masks": hidden}), model(zeroed))


@torch.no_grad()
def test_learned_positions_resize_with_the_grid() -> None:
    """Positions linear in row and column stay so: to 0.05 patches, torch's cubic, and away from the border."""
    model = tiny("ssl4eo_mae", img_size=128)
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    model.pos_embed[0, 1:, 0], model.pos_embed[0, 1:, 1] = row.flatten(), column.flatten()
    resized = model.positions((32, 8))[1][0].unflatten(0, (32, 8))
    centres = (torch.arange(32) + 0.5) / 2 - 0.5, (torch.arange(8) + 0.5) * 2 - 0.5
    torch.testing.assert_close(resized[8:24, 3, 0], centres[0][8:24], atol=0.05, rtol=0)
    torch.testing.assert_close(resized[9, 2:6, 1], centres[1][2:6], atol=0.05, rtol=0)


def test_a_command_line_beside_the_weights_is_no_obstacle_but_code_is(tmp_path) -> None:
    class Code:
        def __reduce__(self):
            return print, ("ran",)

    model = tiny("scalemae")
    torch.save(published("scalemae", model.state_dict()) | {"args": Code()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="not a readable weights file"):
        read_weights(tmp_path / "code.pth")


def test_a_file_that_holds_no_dictionary(tmp_path) -> None:
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="a dictionary of tensors, not a list"):
        tiny("satmae", tmp_path / "list.pth")


def test_unconfirmed_address_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="address of SSL4EO-S12 MAE is not confirmed; pass weights=PATH"):
        load_encoder("ssl4eo_mae")


def test_the_page_of_models_lists_every_one_with_address_and_licence() -> None:
    rows = {row.split("|")[1].strip(" `"): row for row in PAGE.read_text().splitlines() if row.startswith("| `")}
    for name in FIELD + PHILEO:
        release = ZOO[name]
        assert release.url is None or release.url.rsplit("/", 1)[-1] in rows[name]
        assert release.licence in rows[name] and str(release.expects.size) in rows[name]


def test_tables_of_these_tests_are_complete() -> None:
    assert SIZES.keys() == FAMILIES.keys() and VIT["img_size"] % VIT["patch_size"] == 0
