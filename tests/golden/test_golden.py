"""Our code against the recorded outputs of the original implementations: one table (group, kind) -> adapter."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.golden import (
    adapters_decoders,
    adapters_losses,
    adapters_metrics,
    adapters_models,
    adapters_phileo,
    adapters_series,
    adapters_zoo,
)
from tests.golden.harness import Adapter, Fixture, compare, load_fixture

ADAPTERS: dict[tuple[str, str], Adapter] = {
    **adapters_models.ADAPTERS,
    **adapters_losses.ADAPTERS,
    **adapters_decoders.ADAPTERS,
    **adapters_metrics.ADAPTERS,
    **adapters_zoo.ADAPTERS,
    **adapters_series.ADAPTERS,
    **adapters_phileo.ADAPTERS,
}

FOLDER = os.environ.get("EOSSL_GOLDEN", "")
PATHS = sorted(Path(FOLDER).glob("*/*.json")) if FOLDER else []


def produce(fixture: Fixture) -> None:
    """Run the fixture's adapter and compare; an unknown kind fails."""
    key = (fixture.group, fixture.kind)
    if key not in ADAPTERS:
        pytest.fail(f"no adapter for {key}; known: {sorted(ADAPTERS)}")
    compare(fixture, ADAPTERS[key](fixture))


@pytest.mark.golden
@pytest.mark.skipif(not FOLDER, reason="EOSSL_GOLDEN is not set")
def test_folder_holds_fixtures() -> None:
    assert PATHS, f"no fixture in {FOLDER}"


@pytest.mark.golden
@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_golden(path: Path) -> None:
    produce(load_fixture(path))


# ---- the harness itself


RIGHT = {"out/x": torch.tensor([1.0, 9.0]), "out/right/x": torch.tensor([1.0, float("nan")])}
FIXTURE = Fixture("made_up", "group", "kind", {}, {}, {}, RIGHT, {"rtol": 0.0, "atol": 1e-3}, ("out/x",))


def test_right_value_replaces_a_recorded_mistake_and_nan_means_undefined() -> None:
    compare(FIXTURE, {"out/x": torch.tensor([1.0005, 5.0])})


@pytest.mark.parametrize(
    "produced, message",
    [
        ({"out/x": torch.tensor([1.1, 9.0])}, "differs by up to"),
        ({"out/x": torch.zeros(3)}, "shape"),
        ({"out/x": torch.tensor([float("nan"), 9.0])}, "differs"),
        ({}, "not produced"),
    ],
)
def test_difference_is_an_error(produced: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        compare(FIXTURE, produced)


def test_override_widens_one_tensor_only() -> None:
    fixture = replace(
        FIXTURE,
        recorded={"out/a/x": torch.zeros(1), "out/b/x": torch.zeros(1)},
        tolerance={"rtol": 0, "atol": 1e-6, "overrides": {"out/a/*": {"atol": 1.0}}},
    )
    compare(fixture, {"out/a/x": torch.ones(1) * 0.5, "out/b/x": torch.zeros(1)})
    with pytest.raises(AssertionError, match="out/b/x"):
        compare(fixture, {"out/a/x": torch.zeros(1), "out/b/x": torch.ones(1) * 0.5})


def test_unknown_kind_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="no adapter"):
        produce(FIXTURE)
