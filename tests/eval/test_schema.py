import pytest

from eval.schema import CONFIGS, expand_configs, load


def test_the_hash_is_stable_and_knows_what_matters(config, tmp_path):
    evaluation = load(config)
    spelled = {**config, "task": {"temperature": 0.07, "k": 5, "poolings": ["cls"], "name": "knn"}, "seeds": [3]}
    elsewhere = {**config, "dataset": {**config["dataset"], "root": str(tmp_path)}, "running": {"batch_size": 2}}
    assert load(spelled).config_hash == load(elsewhere).config_hash == evaluation.config_hash
    for change in ("task.k=6", "dataset.size=8", "resamples=10", "dataset.test=0.3", "model.missing=zero"):
        assert load(config, [change]).config_hash != evaluation.config_hash


def test_recorded_hash():
    config = {"dataset": {"name": "shards", "root": "x", "label": "scene"}, "task": {"name": "linear"}}
    assert load(config).config_hash == "40fba20e13d4"  # a change here makes every stored row be computed again


def test_names_come_from_the_path(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("dataset: {name: shards, root: x, label: y}\ntask: {name: knn}\n")
    assert load(file).name == "mine"
    assert load(
        CONFIGS / "quickstart" / "knn.yaml", ["dataset.root=x", "dataset.val_root=y", "dataset.test_root=z"]
    ).name == ("quickstart/knn")


def test_lists_folders_and_globs(tmp_path, monkeypatch):
    for name in ("b.yaml", "a.yaml", "sub/c.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [str(p) for p in expand_configs("sub;*.yaml;b.yaml")] == ["sub/c.yaml", "a.yaml", "b.yaml"]
    with pytest.raises(ValueError, match="holds no YAML file"):
        expand_configs("*.json")


def test_what_has_no_default_must_be_given():
    with pytest.raises(ValueError, match="dataset.label, dataset.root must be given"):
        load({"dataset": {"name": "shards"}, "task": {"name": "knn"}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.kk=3", "task.kk"),
        ("task.k=many", "task.k"),
        ("task.name=kn", "task.name is 'kn'; did you mean 'knn'"),
        ("dataset.name=shard", "dataset.name is 'shard'; did you mean 'shards'"),
        ("dataset.labl=x", "Did you mean: 'label'"),
        ("seeds=[]", "seeds is .*; give at least one"),
        ("resamples=0", "resamples is 0; give at least 1"),
        ("task.k=0", "task.k is 0; give at least 1"),
        ("running.batch_size=0", "running.batch_size is 0; give at least 1"),
        ("k", "neither an option nor key=value"),
    ],
)
def test_bad_input(config, override, message):
    with pytest.raises(ValueError, match=message):
        load(config, [override])


@pytest.mark.parametrize(
    "override", ["batch_size=0", "crop_size=-3", "epochs=0", "evaluate_every=0", "learning_rates=[]"]
)
def test_decoders_need_something_to_learn_by(config, override):
    with pytest.raises(ValueError, match=f"task.{override.split('=')[0]} is .*; give at least (1|one)$"):
        load({**config, "task": {"name": "decoder"}}, [f"task.{override}"])
