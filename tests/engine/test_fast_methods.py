"""What the fast methods add to the loop: optimizer groups, the helper, the overfitting test, refused settings."""

import dataclasses
import json

import pytest
import torch

from attacks.pgd import AttackSpec
from engine.config import TrainConfig
from engine.logger import Logger
from engine.networks import create_guide
from engine.optimizer import create_optimizer
from engine.overfitting import catastrophic
from engine.steps import create_step
from engine.trainer import Trainer
from losses import create_objective, find_method
from models import create_model
from tests.helpers import innermost, new_tiny_net, tiny_run
from utils.errors import UserError


def test_batchnorm_is_a_group_without_decay():
    net = create_model("wrn-10-1", 10)
    optimizer = create_optimizer(TrainConfig(no_norm_decay=True, nesterov=True, weight_decay=0.1), [net])
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decays[id(p)] == (0.0 if "bn" in name else 0.1) for name, p in net.named_parameters())
    assert all(group["nesterov"] for group in optimizer.param_groups) and len(decays) == len(list(net.parameters()))


def test_tau_and_gap_follow_the_epoch():
    taus = {
        "fat": {50: 0, 51: 1, 90: 1, 91: 2},
        "fat-trades": {30: 0, 31: 1, 50: 1, 51: 2, 70: 2, 71: 3},
        "fat-mart": {20: 0, 21: 1, 40: 1, 41: 2, 60: 2, 61: 3, 80: 3, 81: 4},
    }
    for method, expected in taus.items():
        objective = create_objective(method)
        for epoch, tau in expected.items():
            objective.begin_epoch(epoch)
            wrong = torch.tensor([tau, tau + 1])
            assert objective.moves(torch.zeros(2, 3), torch.zeros(2), wrong).tolist() == [True, False]
    fixed = create_objective("fat", tau=3)
    fixed.begin_epoch(99)
    assert fixed.bound == 3
    ates = create_objective("ates", gap=0.1, final_gap=0.5, gap_from=30, gap_to=70)
    gaps = []
    for epoch in (1, 30, 31, 50, 70, 100):
        ates.begin_epoch(epoch)
        gaps.append(ates.bound)
    assert gaps == pytest.approx([0.1, 0.1, 0.11, 0.3, 0.5, 0.5])


def step_of(method, net, epsilon=0.1, **values):
    attack = AttackSpec(epsilon, 0.05, 1, start=create_objective(method, **values).start)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return create_step(net, None, create_objective(method, **values), optimizer, attack)


def test_batchnorm_copies_the_first_update_alone():
    net = new_tiny_net(4, 1)
    step = step_of("wa-trades", net)
    x, y, seen = torch.rand(5, 3, 8, 8, dtype=torch.float64), torch.arange(5), []
    net.bn1.register_forward_pre_hook(lambda module, inputs: seen.append(module.momentum))
    step([x], y)
    assert set(seen) == {1.0} and net.bn1.momentum == 0.01  # what a graph captures next


def test_free_keeps_the_perturbation_of_each_position():
    net = new_tiny_net(4, 1)
    step = step_of("free", net, replays=2)
    x, y = torch.rand(5, 3, 8, 8, dtype=torch.float64), torch.arange(5)
    step([x[:3]], y[:3])
    first = step.state_dict()["delta"].clone()
    step([x], y)
    second = step.state_dict()["delta"].clone()
    step([x[:1]], y[:1])
    assert [len(first), len(second)] == [3, 5] and torch.equal(innermost(step).delta[1:], second[1:])
    assert (x + second).min() >= 0 and (x + second).max() <= 1 and second.abs().max() <= 0.1
    other = step_of("free", net, replays=2)
    other.load_state_dict(step.state_dict())
    assert torch.equal(innermost(other).delta, innermost(step).delta)
    with pytest.raises(ValueError, match="the perturbation is"):
        other.load_state_dict({"delta": torch.zeros(3)})


@pytest.mark.parametrize("method", ["free", "yopo", "trades-yopo"])
def test_steps_with_an_attack_of_their_own_refuse_what_they_cannot(method):
    net, objective = new_tiny_net(4, 1), create_objective(method)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(UserError, match=f"--augment-view-weight and --accumulate are not for {method}"):
        create_step(net, None, objective, optimizer, AttackSpec(0.1, 0.05, 1), awp_gamma=0.1)
    with pytest.raises(UserError, match="--norm l2 is not for"):
        create_step(net, None, objective, optimizer, AttackSpec(0.1, 0.05, 1, "l2"))


class Centred(torch.nn.Module):
    """Its first convolution sees the images minus their mean."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x - 0.5)


def test_yopo_refuses_a_network_whose_first_layer_does_not_see_the_images():
    """The gradient of the first layer would be taken at other images than the network's."""
    net, objective = Centred(new_tiny_net(4, 1)), create_objective("yopo", full_passes=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    step = create_step(net, None, objective, optimizer, AttackSpec(0.1, 0.05, 1))
    x, y = torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)
    with pytest.raises(UserError, match="sees the images as they are: leave out --normalize"):
        step([x], y)
    assert not optimizer.state


@pytest.mark.parametrize("method", ["free", "yopo", "dajat"])
def test_members_that_a_step_does_not_use_are_refused(method):
    class Mine(find_method(method)):
        def after_step(self, logits, y):
            pass

    net = new_tiny_net(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"^Mine\.after_step has no effect in the step"):
        create_step(net, None, Mine(), optimizer, AttackSpec(0.1, 0.05, 1))


def test_momentum_that_is_not_for_the_schedule_or_nesterov():
    nets = [create_model("wrn-10-1", 10)]
    with pytest.raises(UserError, match=r"--schedule cyclic lowers --momentum by 0\.1: set it to 0.1 or more"):
        create_optimizer(TrainConfig(schedule="cyclic", momentum=0.05), nets)
    with pytest.raises(UserError, match="--nesterov needs a momentum"):
        create_optimizer(TrainConfig(nesterov=True, momentum=0.0), nets)
    create_optimizer(TrainConfig(schedule="cyclic", momentum=0.1), nets)


@pytest.mark.parametrize(("method", "name"), [("wa-trades", "WATRADES"), ("yopo", "YOPO")])
def test_the_first_update_is_told_by_its_momentum(method, name):
    net, objective = new_tiny_net(4, 1), create_objective(method)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if method == "yopo":
        objective.wide = 1.0
    with pytest.raises(UserError, match=f"^{name} .*: set --momentum above 0"):
        create_step(net, None, objective, optimizer, AttackSpec(0.1, 0.05, 1))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(Logger, "plot", lambda self, final=False: None)


@pytest.mark.parametrize("method", ["hat", "lbgat-frozen"])
def test_a_frozen_guide_is_needed_where_there_is_one_and_stays(tmp_path, quick, method):
    path = tmp_path / "helper.pt"
    with pytest.raises(UserError, match=f"--method {method} needs a naturally trained network"):
        Trainer(tiny_run(tmp_path, method=method))
    torch.save(create_model("wrn-10-1", 10).state_dict(), path)
    with pytest.raises(UserError, match="--guide-checkpoint is for methods with a frozen guide, not for at"):
        Trainer(tiny_run(tmp_path, method="at", guide_checkpoint=str(path)))
    trainer = Trainer(tiny_run(tmp_path, method=method, guide_checkpoint=str(path), epochs=1, limit_train=16))
    before = {name: tensor.clone() for name, tensor in trainer.guide.state_dict().items()}
    trainer.fit()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.guide.state_dict().items())


def test_a_frozen_guide_normalises_as_its_file_says_else_as_the_run(tmp_path):
    net, path = create_model("wrn-10-1", 10).eval(), tmp_path / "helper.pt"
    x, normalized = torch.rand(2, 3, 16, 16), create_model("wrn-10-1", 10, "cifar10").eval()
    normalized.model.load_state_dict(net.state_dict())
    bare, said = net.state_dict(), {"config": {"student": "wrn-10-1"}, "student": net.state_dict()}
    settings = {"method": "hat", "guide_checkpoint": str(path)}
    for content, normalize, expected in ((bare, "none", net), (bare, "cifar10", normalized), (said, "cifar10", net)):
        torch.save(content, path)
        config = tiny_run(tmp_path, **settings, normalize=normalize)
        guide = create_guide(config, create_objective("hat"), 10, torch.device("cpu"))
        torch.testing.assert_close(guide(x), expected(x))


def test_a_frozen_guide_of_another_name_is_refused_where_the_weights_fit(tmp_path):
    """resnet18 and resnet18-guide differ in strides alone."""
    path = tmp_path / "natural.pt"
    state = create_model("resnet18", 10).state_dict()
    torch.save({"config": {"student": "resnet18", "dataset": "digits"}, "student": state}, path)
    config = tiny_run(tmp_path, method="hat", guide_checkpoint=str(path), guide="resnet18-guide")
    with pytest.raises(
        UserError,
        match=r"was trained as resnet18, and resnet18-guide has weights of the same names: pass resnet18 as",
    ):
        create_guide(config, create_objective("hat"), 10, torch.device("cpu"))
    config = dataclasses.replace(config, guide="resnet18")
    assert create_guide(config, create_objective("hat"), 10, torch.device("cpu")) is not None


def test_a_student_without_trainable_weights_is_refused():
    student, guide = create_model("wrn-10-1", 10).requires_grad_(False), create_model("wrn-10-1", 10)
    with pytest.raises(UserError, match="the student has no weights to train"):
        create_optimizer(TrainConfig(), [student, guide])


def test_whole_numbers_and_switches_are_checked():
    with pytest.raises(UserError, match=r"--replays 2\.5 must be a whole number of 1 or more"):
        create_objective("free", replays=2.5)
    with pytest.raises(UserError, match="--stop-overfitting needs the weights of the epoch before"):
        TrainConfig(method="fgsm", stop_overfitting=True)
    with pytest.raises(UserError, match=r"--decay-factors 0\.5: one above 0 for each of --decay-epochs"):
        TrainConfig(decay_factors=(0.5,))


def test_a_fall_of_more_than_a_fifth_stops_the_run(tmp_path, monkeypatch, quick):
    assert [catastrophic(values) for values in ([], [0.1], [0.5, 0.3], [0.5, 0.29], [0.1, 0.9])] == [
        False, False, False, True, False,
    ]  # fmt: skip
    found = iter([0.5, 0.6, 0.1])
    monkeypatch.setattr("engine.trainer.training_accuracy", lambda *args: next(found))
    trainer = Trainer(
        tiny_run(tmp_path, method="fgsm", epochs=9, limit_train=16, stop_overfitting=True, save_freq=1, decay_epochs=())
    )
    trainer.fit()
    lines = (tmp_path / "Logs" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    log = (tmp_path / "Logs" / "run" / "train.log").read_text()
    assert "catastrophic overfitting in epoch 3: PGD-5 accuracy on training images fell from 60.0% to 10.0%" in log
    assert (tmp_path / "checkpoints" / "run" / "student-epoch002.pt").exists()
    assert not (tmp_path / "checkpoints" / "run" / "student-epoch003.pt").exists()
    again = Trainer(trainer.config)
    assert (again.progress.epoch, again.progress.step) == (3, len(again.data.loader))
    again.fit()  # trains nothing more
    assert (tmp_path / "Logs" / "run" / "train.log").read_text().count("catastrophic overfitting in epoch 3") == 2
