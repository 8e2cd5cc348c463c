import pytest
import torch

from dinov2.train.health import CollapseAlarm, reading


def test_spread_directions_read_one_and_full_rank():
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    r = reading(x)
    assert r["std"] == pytest.approx(1.0, abs=0.02)
    assert abs(r["cosine"]) < 0.01
    assert r["rank"] == pytest.approx(16, rel=0.02)


def test_equal_embeddings_read_zero():
    r = reading(torch.ones(32, 8))
    assert r["std"] == pytest.approx(0, abs=1e-6)
    assert r["cosine"] == pytest.approx(1, abs=1e-5)
    assert r["rank"] == pytest.approx(1, abs=0.01)


def test_mean_cosine_equals_the_loop():
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    u = torch.nn.functional.normalize(x, dim=1)
    pairs = [float(u[i] @ u[j]) for i in range(7) for j in range(7) if i != j]
    assert reading(x)["cosine"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


LOW, HIGH = {"std": 0.01, "cosine": 1.0, "rank": 1.0}, {"std": 0.9, "cosine": 0.0, "rank": 9.0}


def test_alarm_needs_readings_in_a_row():
    alarm = CollapseAlarm(0.1, patience=2, total=100)
    for step, reading_ in enumerate((HIGH, LOW, HIGH, LOW), 1):
        alarm.check(step, reading_)
    with pytest.raises(ValueError, match=r"collapsed: embedding std 0\.0100 .* step 5"):
        alarm.check(5, LOW)


def test_a_network_that_starts_alike_has_half_the_run_to_spread():
    alarm = CollapseAlarm(0.1, patience=2, total=100)
    for step in range(10, 51, 10):
        alarm.check(step, LOW)
    with pytest.raises(ValueError, match="step 60"):
        alarm.check(60, LOW)


def test_a_resumed_alarm_remembers():
    first, second = (CollapseAlarm(0.1, patience=2, total=100) for _ in range(2))
    first.check(1, HIGH)
    first.check(2, LOW)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="step 3"):
        second.check(3, LOW)
