"""Learning rate, attack and weight perturbation of each epoch against their formulas."""

import math

import pytest
import torch

from attacks.pgd import AttackSpec
from engine.config import TrainConfig
from engine.schedule import attack_spec, awp_gamma, learning_rate, momentum, update_rates


def test_multistep_schedule():
    config = TrainConfig()
    for epoch in range(1, 101):
        expected = 0.02 if epoch == 1 else 0.1 if epoch < 76 else 0.01 if epoch < 91 else 0.001
        assert learning_rate(config, epoch) == pytest.approx(expected, rel=1e-12)


def test_decays_of_other_recipes():
    trades = TrainConfig(warmup_factor=1.0, decay_epochs=(75, 90, 100))
    rates = {epoch: learning_rate(trades, epoch) for epoch in (1, 74, 75, 89, 90, 99, 100)}
    expected = {1: 0.1, 74: 0.1, 75: 0.01, 89: 0.01, 90: 1e-3, 99: 1e-3, 100: 1e-4}
    assert rates == pytest.approx(expected, rel=1e-12)
    assert learning_rate(TrainConfig(decay_epochs=()), 100) == 0.1


def test_cosine_schedule():
    config = TrainConfig(schedule="cosine", lr=0.2, epochs=200)
    for epoch in range(1, 201):
        expected = 0.2 * 0.5 * (1 + math.cos(math.pi * epoch / 201))
        assert learning_rate(config, epoch) == learning_rate(config, epoch, 0.99) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("epochs", [1, 7, 30])
def test_onecycle_schedule(epochs):
    config = TrainConfig(schedule="onecycle", lr=0.3, epochs=epochs)
    for epoch in range(1, epochs + 1):
        for done in (0.0, 0.25, 0.5, 1.0):
            t = epoch - 1 + done
            expected = 0.3 * t / (0.4 * epochs) if t < 0.4 * epochs else 0.3 * (epochs - t) / (0.6 * epochs)
            assert learning_rate(config, epoch, done) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("epochs", [1, 7, 49, 200])
def test_epsilon_ramp_ends_at_exactly_epsilon(epochs):
    config = TrainConfig(epsilon="8/255", epsilon_ramp="linear", step_ratio=0.5, num_steps=5, epochs=epochs)
    for epoch in range(1, epochs + 1):
        spec = attack_spec(config, "gaussian", epoch)
        assert spec.epsilon == pytest.approx(8 / 255 * epoch / epochs, rel=1e-15)
        assert spec.step_size == spec.epsilon / 2
    assert spec == AttackSpec(8 / 255, 4 / 255, 5, "linf", "gaussian")


def test_without_a_ramp_the_attack_is_that_of_the_settings():
    config = TrainConfig()
    assert {attack_spec(config, "uniform", e) for e in (1, 50, 100)} == {AttackSpec(0.031, 0.007, 10, start="uniform")}
    assert attack_spec(TrainConfig(epsilon_ramp="linear"), "gaussian", 50).step_size == 0.007


def test_awp_start_epoch():
    config = TrainConfig(awp_gamma=0.005, awp_start_epoch=10)
    assert [awp_gamma(config, epoch) for epoch in (1, 9, 10, 11)] == [0, 0, 0.005, 0.005]


def test_cyclic_starts_at_zero_and_momentum_falls_as_the_rate_rises():
    """15 epochs of 4 steps of 2 updates: the peak is in the middle, and the very first update has rate 0."""
    config = TrainConfig(schedule="cyclic", lr=0.2, epochs=15)
    rates = [rate for epoch in range(1, 16) for step in range(4) for rate in update_rates(config, epoch, step, 4, 2)]
    assert len(rates) == 120 and rates[0] == {"lr": 0.0, "momentum": 0.9}
    assert rates[60] == pytest.approx({"lr": 0.2, "momentum": 0.8}, rel=1e-12)
    for s, rate in enumerate(rates):
        h = 1 - abs(2 * s / 120 - 1)
        assert rate == pytest.approx({"lr": 0.2 * h, "momentum": 0.9 - 0.1 * h}, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("by", "epochs", "steps"), [("epochs", 40, 3), ("updates", 4, 10)])
def test_onecycle_is_pytorchs(by, epochs, steps):
    config = TrainConfig(schedule=f"onecycle-{by}", lr=0.4, epochs=epochs, onecycle_up=0.25)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    total = epochs if by == "epochs" else epochs * steps
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=total, pct_start=0.25)
    for epoch in range(1, epochs + 1):
        for step in range(steps):
            (rate,) = update_rates(config, epoch, step, steps, 1)
            group = optimizer.param_groups[0]
            assert rate == pytest.approx({"lr": group["lr"], "momentum": group["momentum"]}, rel=1e-9)
            if (by == "updates" or step == steps - 1) and (epoch, step) != (epochs, steps - 1):
                optimizer.step()
                reference.step()


def test_piecewise_decays_one_update_early():
    config = TrainConfig(schedule="piecewise", lr=0.1, epochs=200, decay_epochs=(101, 151))
    rates = {(e, s): update_rates(config, e, s, 10, 1)[0]["lr"] for e in (100, 101, 150, 151) for s in (0, 8, 9)}
    assert rates[100, 8] == 0.1 and rates[100, 9] == rates[101, 0] == rates[150, 8] == pytest.approx(0.01)
    assert rates[150, 9] == rates[151, 0] == pytest.approx(0.001)


def test_piecewise_with_factors():
    config = TrainConfig(schedule="piecewise", lr=1.0, epochs=4, decay_epochs=(2, 3), decay_factors=(0.5, 0.1))
    rates = [update["lr"] for step in range(4) for update in update_rates(config, 1, step, 4, 1)]
    assert rates == [1.0, 1.0, 1.0, 0.5]
    assert learning_rate(config, 2, 0.5) == 0.5 and learning_rate(config, 3, 0.5) == pytest.approx(0.05)


def test_cosine_from_lr_and_the_decay_factors_of_fat():
    config = TrainConfig(schedule="cosine-from-lr", lr=0.2, epochs=200)
    assert [learning_rate(config, e) for e in (1, 101)] == pytest.approx([0.2, 0.1])
    fat = TrainConfig(warmup_factor=1, decay_epochs=(60, 90, 110), decay_factors=(0.1, 0.1, 0.5), epochs=120)
    assert [learning_rate(fat, e) for e in (59, 60, 90, 110)] == pytest.approx([0.1, 0.01, 0.001, 0.0005])
    assert momentum(fat, 60) == 0.9


def test_a_schedule_without_a_rate_is_an_error():
    config = TrainConfig()
    object.__setattr__(config, "schedule", "poly")  # as if it were only listed
    with pytest.raises(ValueError, match="no learning rate for the schedule 'poly'"):
        learning_rate(config, 1)
