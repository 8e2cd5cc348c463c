import json

import pytest

from eval.engine import evaluate
from eval.tables import main, read_rows


@pytest.fixture
def folders(tmp_path, run, config):
    """Two evaluations of the same data: a run and a floor."""
    for name, model in (("run", str(run)), ("floor", "pixelstats")):
        evaluate([model], [config, {**config, "name": "tiny/more", "seeds": [0, 1]}], tmp_path / name)
    return [str(tmp_path / "run"), str(tmp_path / "floor")]


def test_joined_tables_are_those_of_one_call(tmp_path, folders, run, config):
    configs = [config, {**config, "name": "tiny/more", "seeds": [0, 1]}]
    evaluate([str(run), "pixelstats"], configs, tmp_path / "one")
    assert main([*folders, "--output-dir", str(tmp_path / "all")]) == 0

    def lines(folder):
        return sorted((tmp_path / folder / "results.md").read_text().splitlines())

    assert lines("all") == lines("one")
    costs = {row["model"]: row["cost"] for row in read_rows([tmp_path / "one"])}
    assert costs["pixelstats"] == {"parameters": 0, "flops": 0} and costs["run"]["flops"] > 0
    assert (tmp_path / "all" / "leaderboard.md").read_text().count("\n") == 4
    page = (tmp_path / "all" / "report.html").read_bytes()
    (tmp_path / "averages.yaml").write_text("both: [tiny/*]\n")
    named = ["--averages", str(tmp_path / "averages.yaml"), "--output-dir", str(tmp_path / "named")]
    assert main([*folders, *named]) == 0
    assert "| both |" in (tmp_path / "named" / "leaderboard.md").read_text()
    main([f"{folder}/results.jsonl" for folder in folders] + ["--output-dir", str(tmp_path / "again")])
    assert (tmp_path / "again" / "report.html").read_bytes() == page


def test_mistakes(tmp_path, folders):
    with pytest.raises(ValueError, match="there is no .*nowhere"):
        read_rows([tmp_path / "nowhere"])
    file = tmp_path / "run" / "results.jsonl"
    other = json.loads(file.read_text().splitlines()[0])
    (tmp_path / "other.jsonl").write_text(json.dumps({**other, "value": 0.1}) + "\n")
    with pytest.raises(ValueError, match="another row of tiny/knn, run, seed 0"):
        read_rows([file, tmp_path / "other.jsonl"])
    assert read_rows([file, file]) == read_rows([file])
