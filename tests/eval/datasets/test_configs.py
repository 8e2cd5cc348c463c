from pathlib import Path

import pytest

from eval import schema
from eval.datasets import CONFIGS, DATASETS, READERS, build_dataset, cards, defaults, describe
from eval.decoders import DECODERS, NECKS

NAMES = [name for name in DATASETS if name not in READERS]
EVALUATIONS = sorted(schema.CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_is_a_short_file_with_a_card(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 40
    card = describe(name)["card"]
    assert {"title", "task", "licence", "citation", "get", "notes"} == card.keys()
    assert all(isinstance(value, str) and value.strip() for value in card.values())


@pytest.mark.parametrize("name", NAMES)
def test_without_its_data_a_dataset_says_what_is_missing(name, tmp_path, monkeypatch):
    for variable in ("RDIR", "GEO_BENCH_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"missing|absent|needs either a target"):
        build_dataset({"name": name, "root": str(tmp_path / "nowhere")})


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda p: str(p.relative_to(schema.CONFIGS)))
def test_every_evaluation_config_is_complete(path):
    found = schema.load(path, [] if "folder" not in path.parts else ["dataset.root=x"])
    assert found.dataset["name"] in DATASETS
    if found.task["name"] == "decoder":
        assert found.task["decoder"] in DECODERS
        assert found.task["neck"] == "none" or found.task["neck"] in NECKS
    assert not set(defaults(found.dataset["name"])) - set(found.dataset)


def test_named_folders_hold_what_they_promise():
    def names(folder):
        return {p.stem for p in (schema.CONFIGS / folder).rglob("*.yaml")}

    assert (
        names("burn_scars/frozen") == names("burn_scars/random") == {"fcn", "segformer", "linear", "muster", "upernet"}
    )
    assert len(list(Path(schema.CONFIGS / "burn_scars").rglob("*.yaml"))) == 15
    assert len(names("geobench")) == 12
    assert {f"geobench2_{name}" for name in names("geobench2")} == {n for n in NAMES if n.startswith("geobench2_")}
    assert names("5min") == {"all", "rgb", "norgb", "eurosat_sar", "resisc45"}
    assert names("15min") == {"eurosat_sar", "opt", "sar", "both", "enmap", "s2"}
    assert "so2sat" in names("1h/geobench")
    pangaea = schema.load(schema.CONFIGS / "pangaea/hls_burn_scars.yaml").task
    protocol = {"decoder": "upernet", "epochs": 80, "learning_rates": [1e-4], "weight_decay": 0.05, "train": "frozen"}
    assert {key: list(v) if isinstance(v := pangaea[key], tuple) else v for key in protocol} == protocol


def test_the_page_of_cards_is_up_to_date():
    assert cards.PAGE.read_text() == cards.page(), "write it again: python -m eval.datasets.cards"
