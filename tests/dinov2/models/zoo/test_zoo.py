import hashlib
from dataclasses import replace

import pytest
import torch

from dinov2.models import zoo
from dinov2.models.zoo import load_encoder, load_released

SIZES = dict(embed_dim=16, depth=4, num_heads=2, img_size=28, attn_dim=24, attn_heads=4)


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    """A tiny state in the released layout."""
    torch.manual_seed(0)
    state = load_encoder("panopticon_vitb14", "random", **SIZES).state_dict()
    return {"mask_token": torch.randn(1, 16), **state}


def chunked(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``blocks.<i>`` as two chunks of two blocks, numbered on."""
    parts = {k: k.split(".") for k in state}
    return {
        ".".join([p[0], str(int(p[1]) // 2), *p[1:]]) if p[0] == "blocks" else k: state[k] for k, p in parts.items()
    }


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + k: v for k, v in state.items()}


HEAD = {"dino_head.mlp.0.weight": torch.ones(1), "ibot_head.mlp.0.weight": torch.ones(1)}
LAYOUTS = {
    "flat": lambda s: s,
    "chunks": chunked,
    "teacher_checkpoint": lambda s: {"teacher": {**prefixed("backbone.", s), **HEAD}},
    "model_final": lambda s: {
        "model": {
            **prefixed("teacher.backbone.", chunked(s)),
            **prefixed("teacher.", HEAD),
            **prefixed("student.backbone.", {k: 0 * v for k, v in s.items()}),
            "dino_loss.center": torch.zeros(1, 4),
        },
        "iteration": 12,
        "optimizer": {"state": {}},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_encoder(released, layout: str, tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](released), path)
    encoder, beside = load_released("panopticon_vitb14", path, **SIZES)
    assert beside.keys() == {"mask_token"} and torch.equal(beside["mask_token"], released["mask_token"])
    assert all(torch.equal(v, released[k]) for k, v in encoder.state_dict().items())
    assert not encoder.training


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: without(s, "norm.bias"), "missing keys: norm.bias"),
        (lambda s: {**s, "gate": torch.ones(1)}, "unknown keys: gate"),
        (lambda s: {"teacher": {**prefixed("backbone.", s), "gate": torch.ones(1)}}, "unknown keys beside.*gate"),
        (lambda s: without(s, "patch_embed.chnfus.query"), "missing keys: patch_embed.chnfus.query"),
    ],
)
def test_missing_and_unknown_keys_are_named(released, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_encoder("panopticon_vitb14", change(released), **SIZES)


def test_weights_of_another_size_are_refused(released) -> None:
    with pytest.raises(
        ValueError, match="panopticon_vitb14 from a state dict does not fit.*other shapes: blocks.0.attn"
    ):
        load_encoder("panopticon_vitb14", released, **{**SIZES, "embed_dim": 32})


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="dinov2_vitb14.*panopticon_vitb14"):
        load_encoder("panopticum")


def test_files_that_are_no_weights(tmp_path) -> None:
    class Code:
        def __reduce__(self):
            return print, ("ran",)

    torch.save(Code(), tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("code.pth", "text.pth", "empty.pth"):
        with pytest.raises(ValueError, match=f"{name} is not a readable weights file"):
            load_encoder("panopticon_vitb14", tmp_path / name)
    with pytest.raises(ValueError, match="there is no such weights file"):
        load_encoder("panopticon_vitb14", tmp_path / "absent.pth")


@pytest.mark.parametrize("name", [*zoo.dinov2.RELEASES, *zoo.panopticon.RELEASES])
def test_released_sizes_build(name: str) -> None:
    with torch.device("meta"):
        encoder = load_encoder(name, "random")
    assert encoder.pos_embed.shape[1] == 1 + 37 * 37 and encoder.registers == (4 if name.endswith("_reg") else 0)


# ---- the download, from a file:// address


@pytest.fixture
def published(released, tmp_path, monkeypatch):
    """The release's file at an address of this machine; returns (path of the file, setter of the release)."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    file = tmp_path / "site" / "weights.pth"
    file.parent.mkdir()
    torch.save(released, file)

    def publish(**fields):
        release = replace(zoo.ZOO["panopticon_vitb14"], url=file.as_uri(), **fields)
        monkeypatch.setitem(zoo.ZOO, "panopticon_vitb14", release)

    publish()
    return file, publish


def test_download_happens_once(released, published) -> None:
    file, _ = published
    load_encoder("panopticon_vitb14", **SIZES)
    file.unlink()
    encoder = load_encoder("panopticon_vitb14", **SIZES)
    assert torch.equal(encoder.cls_token, released["cls_token"])


def test_unreachable_download_is_one_sentence(published, tmp_path) -> None:
    file, _ = published
    file.unlink()
    with pytest.raises(ValueError, match="could not download the released weights from file:.*weights=PATH") as error:
        load_encoder("panopticon_vitb14", **SIZES)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "hub").rglob("*.pth*"))


def test_checksum_is_verified_where_it_is_known(published, tmp_path) -> None:
    file, publish = published
    publish(sha256="0" * 64)
    with pytest.raises(ValueError, match="could not download.*invalid hash value"):
        load_encoder("panopticon_vitb14", **SIZES)
    assert not list((tmp_path / "hub").rglob("*.pth*"))
    publish(sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    load_encoder("panopticon_vitb14", **SIZES)
    (kept,) = (tmp_path / "hub").rglob("*.pth")
    kept.write_bytes(kept.read_bytes()[:-1])  # a copy that broke off, of before the checksum was known
    with pytest.raises(ValueError, match="weights.pth is not the published file .another checksum.; remove it"):
        load_encoder("panopticon_vitb14", **SIZES)
