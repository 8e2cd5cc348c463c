"""torch.hub entries, in an interpreter that has torch and numpy and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinov2.models import build_encoder
from dinov2.models.export import save_export, save_pretrained

REPO = Path(__file__).resolve().parent.parent

ONLY_TORCH_AND_NUMPY = """
import sys
import torch, numpy, torch._dynamo  # their own imports are theirs; the last comes with tensors on the meta device

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in ALLOWED and top not in sys.stdlib_module_names and name not in sys.modules:
            raise ModuleNotFoundError(f"blocked: {name}")

ALLOWED = {"torch", "numpy", "mpmath", "sympy", "hubconf", "dinov2"}
sys.meta_path.insert(0, Blocker())
for name in ("yaml", "omegaconf", "rasterio", "safetensors", "fvcore"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} could be imported")
"""

README_EXAMPLE = """
model = torch.hub.load(REPO, "panopticon_vitb14", source="local", weights=WEIGHTS)
x_dict = dict(imgs=torch.randn(2, 3, 224, 224), chn_ids=torch.tensor([[664, 559, 493]]).repeat(2, 1))
with torch.no_grad():
    assert model(x_dict).shape == (2, 768)
    blocks = model.get_intermediate_layers(x_dict, n=[3, 5, 7, 11], return_class_token=True)
assert len(blocks) == 4
assert blocks[0][1].shape == (2, 768) and blocks[0][0].shape == (2, (224 // 14) ** 2, 768)
"""


def run_bare(code: str, folder: Path, **values: str) -> subprocess.CompletedProcess:
    """Run ``code`` in ``folder`` with the import blocker in place and ``values`` as its global names."""
    names = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TORCH_HOME": str(folder)}
    script = ONLY_TORCH_AND_NUMPY + f"REPO = {str(REPO)!r}\n" + names + code
    return subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)


def test_panopticon_readme_example(tmp_path: Path) -> None:
    done = run_bare(README_EXAMPLE, tmp_path, WEIGHTS="random")
    assert done.returncode == 0, done.stderr


def test_offline_is_one_clear_sentence(tmp_path: Path) -> None:
    """No proxy answers at port 9 (discard), so the address cannot be reached whatever the machine's network."""
    code = "import os\nos.environ['https_proxy'] = 'http://127.0.0.1:9'\nos.environ.pop('no_proxy', None)\n"
    done = run_bare(code + "torch.hub.load(REPO, 'panopticon_vitb14', source='local')", tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: could not download the released weights from https://huggingface.co/")
    assert "weights=PATH" in last


RELEASED_EXAMPLE = """
assert {*hubconf.ZOO, "eossl"} <= {name for name, entry in vars(hubconf).items() if callable(entry)}
sizes = dict(embed_dim=16, depth=2, num_heads=2, img_size=16, patch_size=8)
model = torch.hub.load(REPO, "satmae", source="local", weights="random", channel_embed=4, **sizes)
torch.save(model.state_dict(), "weights.pth")
again = torch.hub.load(REPO, "satmae", source="local", weights="weights.pth", channel_embed=4, **sizes)
x = torch.randn(1, 10, 16, 16)
assert torch.equal(again(x), model(x))
"""


def test_every_released_encoder_is_an_entry(tmp_path: Path) -> None:
    done = run_bare("sys.path.insert(0, REPO)\nimport hubconf\n" + RELEASED_EXAMPLE, tmp_path)
    assert done.returncode == 0, done.stderr


def test_own_export(tmp_path: Path) -> None:
    encoder = build_encoder("vit_tiny", 4, 8, depth=1, attn_dim=48)
    save_export(tmp_path / "model_final.safetensors", encoder, normalisation={}, info={})
    model = torch.hub.load(str(REPO), "eossl", source="local", weights=str(tmp_path / "model_final.safetensors"))
    assert torch.equal(model.cls_token, encoder.cls_token)
    save_pretrained(tmp_path / "hub", encoder, normalisation={}, info={})
    model = torch.hub.load(str(REPO), "eossl", source="local", weights=str(tmp_path / "hub"))
    assert torch.equal(model.cls_token, encoder.cls_token)


def test_panopticon_from_a_file(tmp_path: Path) -> None:
    """The round trip of the released layout, and a file whose weights are another model's."""
    model = torch.hub.load(str(REPO), "panopticon_vitb14", source="local", weights="random", depth=1)
    torch.save({"teacher": {f"backbone.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "teacher.pth")
    again = torch.hub.load(str(REPO), "panopticon_vitb14", source="local", weights=tmp_path / "teacher.pth", depth=1)
    x = {"imgs": torch.randn(1, 2, 28, 28), "chn_ids": torch.tensor([[664, -1]])}
    assert torch.equal(again(x), model(x))
    with pytest.raises(ValueError, match="looks like Panopticon, not DOFA"):
        torch.hub.load(str(REPO), "dofa", source="local", weights=tmp_path / "teacher.pth")
    (tmp_path / "teacher.pth").write_bytes((tmp_path / "teacher.pth").read_bytes()[:-100])
    with pytest.raises(ValueError, match="teacher.pth is not a readable weights file"):
        torch.hub.load(str(REPO), "panopticon_vitb14", source="local", weights=tmp_path / "teacher.pth", depth=1)
