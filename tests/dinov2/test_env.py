from pathlib import Path

import pytest

from dinov2.env import ROOT, expand, load


def test_variables_and_home_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDIR", "/data")
    monkeypatch.setenv("HOME", "/home/someone")
    assert expand("$RDIR/datasets/x") == expand("${RDIR}/datasets/x") == "/data/datasets/x"
    assert expand("s3://bucket/${RDIR}x") == "s3://bucket//datax"
    assert expand("~/x") == "/home/someone/x" and expand("plain/a~b.tif") == "plain/a~b.tif"


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("EOSSL_NOT_SET", raising=False)
    if value is not None:
        monkeypatch.setenv("EOSSL_NOT_SET", value)
    with pytest.raises(ValueError, match=r"\$\{EOSSL_NOT_SET\}/x: the variable EOSSL_NOT_SET is not set.*\.env"):
        expand("${EOSSL_NOT_SET}/x")


def test_the_shell_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EOSSL_A", "shell")
    monkeypatch.setenv("EOSSL_B", "")
    monkeypatch.delenv("EOSSL_B")  # known to monkeypatch, so that what load() sets is undone
    (tmp_path / ".env").write_text("EOSSL_A=file\nEOSSL_B=file  # comment\n")
    load(tmp_path / ".env")
    assert (expand("$EOSSL_A"), expand("$EOSSL_B")) == ("shell", "file")


def test_every_variable_of_the_example_is_explained_and_optional() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    settings = [i for i, line in enumerate(lines) if "=" in line and line.lstrip("# ")[:1].isupper()]
    assert settings and all(lines[i].startswith("#") for i in settings)  # copied as it is, it sets nothing
