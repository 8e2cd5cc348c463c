import math

import pytest

from dinov2.train.schedules import Schedules, cosine, scaled_lr

OPTIM = {
    "lr": 2.0,
    "min_lr": 0.5,
    "warmup_steps": 5,
    "hold_steps": 3,
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "momentum": 0.99,
    "momentum_end": 1.0,
    "teacher_temp": 0.07,
    "teacher_temp_start": 0.04,
    "teacher_temp_warmup_steps": 4,
}


def test_every_phase_by_hand():
    schedule = cosine(2.0, 1.0, 12, freeze=2, warmup=3, hold=3, start=1.0)
    falling = [1.5 + 0.5 * math.cos(math.pi * i / 4) for i in range(4)]
    expected = [0, 0, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, *falling, 1.0, 1.0]
    assert [schedule(step) for step in range(14)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("total", [1, 7, 1000, 200_003])
def test_phases_of_any_length_meet(total):
    for warmup in {0, 1, total // 3, total}:
        schedule = cosine(1.0, 0.25, total, warmup=warmup)
        assert schedule(0) == pytest.approx(0.0 if warmup else 1.0, abs=1e-5)
        if warmup:
            assert schedule(warmup - 1) == pytest.approx(1.0 if warmup > 1 else 0.0, abs=1e-5)
        if warmup < total:
            assert schedule(warmup) == pytest.approx(1.0, abs=1e-5)
        assert schedule(total) == schedule(10 * total) == 0.25


def test_more_phases_than_steps_is_an_error():
    with pytest.raises(ValueError, match="exceed the 10 steps"):
        cosine(1.0, 0.0, 10, warmup=6, hold=5)


def test_now_depends_on_the_step_alone():
    schedules, again = Schedules(OPTIM, 20), Schedules(OPTIM, 20)
    forward, backward = [schedules.now(s) for s in range(25)], [again.now(s) for s in reversed(range(25))]
    assert forward == backward[::-1]
    first, peak, last = forward[0], forward[4], forward[20]
    start = (first.step, first.lr, first.weight_decay, first.momentum, first.teacher_temp)
    assert start == pytest.approx((0, 0, 0.04, 0.99, 0.04))
    assert (peak.lr, peak.teacher_temp) == pytest.approx((2.0, 0.07))
    assert (last.lr, last.weight_decay, last.momentum, last.teacher_temp) == (0.5, 0.4, 1.0, 0.07)


def test_no_temperature_ramp_is_the_temperature():
    assert Schedules(OPTIM | {"teacher_temp_warmup_steps": 0}, 20).now(0).teacher_temp == 0.07


@pytest.mark.parametrize("option", [{"momentum": 1.01}, {"momentum_end": -0.1}])
def test_a_teacher_momentum_that_is_no_share_is_an_error(option):
    with pytest.raises(ValueError, match=rf"optim\.{next(iter(option))} .* from 0 to 1"):
        Schedules(OPTIM | option, 20)


def test_learning_rate_rules():
    assert scaled_lr(1e-3, 256, "none") == 1e-3
    assert scaled_lr(1e-3, 256, "sqrt_1024") == pytest.approx(5e-4)
    assert scaled_lr(1e-3, 512, "linear_256") == pytest.approx(2e-3)
    with pytest.raises(ValueError, match="linear_256"):
        scaled_lr(1e-3, 256, "linear")
