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


def test_alarm_needs_readings_in_a_row():
    alarm = CollapseAlarm(0.1, patience=2)
    low, high = {"std": 0.01, "cosine": 1.0, "rank": 1.0}, {"std": 0.9, "cosine": 0.0, "rank": 9.0}
    alarm.check(1, low)
    alarm.check(2, high)
    alarm.check(3, low)
    with pytest.raises(ValueError, match=r"collapsed: embedding std 0\.0100 .* step 4"):
        alarm.check(4, low)
