"""The contract of a training step, and what the trainer hands to it."""

from dataclasses import replace

import pytest
import torch

from attacks.pgd import AttackSpec, frozen, perturb
from engine.config import TrainConfig
from engine.cost import step_gflop
from engine.steps import create_step
from engine.trainer import Trainer
from losses import create_objective
from losses.lbgat import LBGAT
from losses.trades import TRADES
from models import create_model
from tests.helpers import new_tiny_net
from utils.distributed import ProcessGroup
from utils.errors import UserError

ATTACK = AttackSpec(0.03, 0.01, 1)


def step_of(method, **values):
    net = create_model("wrn-10-1", 10)
    objective = create_objective(method, 10, **values)
    return create_step(net, None, objective, torch.optim.SGD(net.parameters(), 0.1), ATTACK, view_weights=(1.0, 0.3))


def test_each_view_is_attacked_from_its_own_start(monkeypatch):
    starts = []

    def recording(forward, x, y, inner, spec, start, **others):
        starts.append(start)
        return start

    monkeypatch.setattr("engine.steps.standard.perturb", recording)
    x, second = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    step_of("at")([x, second], torch.tensor([0, 1]), torch.Generator().manual_seed(0))
    assert (starts[0] - x).abs().max() <= ATTACK.epsilon + 1e-6 < (starts[0] - second).abs().max()
    assert (starts[1] - second).abs().max() <= ATTACK.epsilon + 1e-6 < (starts[1] - x).abs().max()
    assert not torch.equal(starts[0] - x, starts[1] - second)


def test_the_prior_is_made_of_the_plain_view():
    step, seen, plain = step_of("ikl"), [], []
    step.objective.after_step = lambda logits, y: seen.append(logits["nat"])
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    step.student.model.register_forward_hook(
        lambda m, i, o: plain.append(o.detach()) if m.training and torch.equal(i[0], x) else None
    )
    step([x, 1 - x], y)
    assert len(seen) == len(plain) == 1 and torch.equal(seen[0], plain[0])


def test_the_generator_decides_the_step():
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        step = step_of("trades")
        step([x], y, torch.Generator().manual_seed(seed))
        found.append(step.x_adv[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_attack_noise_and_batches_have_seeds_of_their_own(tmp_path):
    folders = {"log_dir": str(tmp_path), "checkpoint_dir": str(tmp_path)}
    trainer = Trainer(TrainConfig.create(method="at", student="wrn-10-1", limit_train=8, device="cpu", **folders))
    for epoch in (1, 2):
        noise = {trainer._generator(epoch, step).initial_seed() for step in range(5)}
        loader = {trainer.data.loader._seed(epoch), *(trainer.data.loader._seed(epoch, step, 1) for step in range(5))}
        assert len(noise) == 5 and not noise & loader


class AgainstTheGuide(LBGAT):
    inner_uses_guide = True

    def inner(self, adv_logits, nat_logits, y):
        return (adv_logits - nat_logits).square().mean(1)


def test_an_attack_away_from_the_guide():
    """By hand: gradient ascent on |f(x') - g(x)|^2, the guide in eval mode."""
    (net, guide), spec = (new_tiny_net(4, seed) for seed in (1, 2)), AttackSpec(0.05, 0.02, 3)
    x, y = torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)
    expected = start = x + 0.001 * torch.randn_like(x)
    fixed = guide.eval()(x).detach()
    for _ in range(3):
        leaf = expected.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((net.eval()(leaf) - fixed).square().sum(), leaf)
        expected = (x + (leaf.detach() + 0.02 * gradient.sign() - x).clamp(-0.05, 0.05)).clamp(0, 1)
    optimizer = torch.optim.SGD([*net.parameters(), *guide.parameters()], 0.1)
    step = create_step(net, guide, AgainstTheGuide(beta=0.0), optimizer, spec)
    step.draw_starts = lambda views, generator: [start]
    step([x], y)
    torch.testing.assert_close(step.x_adv[0], expected)
    with pytest.raises(UserError, match="the attack of AgainstTheGuide uses a guide"):
        create_step(net, None, AgainstTheGuide(beta=0.0), optimizer, spec)


def test_processes_would_stop_at_different_steps():
    """An attack in train mode exchanges statistics in every step: all processes must make equally many."""
    objective = create_objective("fat")
    net, optimizer = new_tiny_net(4, 1), torch.optim.SGD(new_tiny_net(4, 1).parameters(), 0.1)
    type(objective).attack_mode, mode = "train", type(objective).attack_mode
    try:
        with pytest.raises(UserError, match="an attack of FAT may stop early in one process: add --batch-norm local"):
            create_step(net, None, objective, optimizer, ATTACK, group=ProcessGroup(0, 2))
    finally:
        type(objective).attack_mode = mode


# -- attacks as data -------------------------------------------------------------------------------------------------


def linear():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).double()


def test_only_images_that_move_take_a_step():
    """Image i moves in its first i steps, each of exactly the step size."""
    net, x, y = linear(), torch.full((4, 3, 2, 2), 0.5, dtype=torch.float64), torch.arange(4) % 3
    inner = create_objective("at").inner
    steps = iter(range(3))

    def moves(logits, labels, wrong):
        assert logits.shape == (4, 3) and torch.equal(labels, y)
        return torch.arange(4) > next(steps)

    spec = AttackSpec(0.4, 0.1, 3, start="clean")
    x_adv = perturb(net, x, y, inner, spec, uses_clean=False, moves=moves)
    distance = (x_adv - x).abs().flatten(1)
    torch.testing.assert_close(distance, 0.1 * torch.arange(4).double()[:, None].expand(4, 12))


def test_radius_length_and_number_of_steps_of_each_image():
    """Image i takes n_i steps of s_i within e_i, whether stopped images are still computed or not."""
    net, x, y = linear(), torch.full((4, 3, 2, 2), 0.5, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    epsilon = torch.tensor([0.4, 0.4, 0.15, 0.4]).double()
    size, number = torch.tensor([0.1, 0.05, 0.1, 0.1]).double(), torch.tensor([1, 2, 3, 3])
    spec, images = AttackSpec(epsilon, size, number, start="clean"), []

    def forward(x_adv):
        images.append(len(x_adv))
        return net(x_adv)

    for drop_stopped in (False, True):
        x_adv = perturb(forward, x, y, create_objective("at").inner, spec, uses_clean=False, drop_stopped=drop_stopped)
        distance = (x_adv - x).abs().flatten(1).amax(1)
        torch.testing.assert_close(distance, torch.tensor([0.1, 0.1, 0.15, 0.3]).double())
    assert images == [4, 4, 4, 4, 4, 3]


def test_noise_is_added_before_the_projection():
    net, x, y = linear(), torch.full((2, 3, 2, 2), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    spec = AttackSpec(0.1, 0.1, 1, start="clean", noise=0.01)
    x_adv = perturb(net, x, y, create_objective("at").inner, spec, torch.Generator().manual_seed(0), uses_clean=False)
    noise = 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outward = ((x_adv - x).sign() * noise).clamp_max(0)  # what would lead out of the ball is cut off
    torch.testing.assert_close((x_adv - x).abs(), 0.1 + outward)


@pytest.mark.parametrize(("mode", "tracked"), [("eval", 0), ("train", 2), ("batch", 0)])
def test_the_mode_of_the_attacked_network(mode, tracked):
    """Eval uses the running statistics; train and batch those of the batch at hand, and train alone updates."""
    net, x = torch.nn.BatchNorm2d(3), torch.rand(5, 3, 4, 4)
    before = net.running_mean.clone()
    with frozen(net, mode):
        assert not net.weight.requires_grad
        out = [net(x), net(x)][0]
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    expected = x / (1 + net.eps) ** 0.5 if mode == "eval" else (x - mean) / (var + net.eps).sqrt()
    torch.testing.assert_close(out, expected)
    assert net.num_batches_tracked == tracked and torch.equal(net.running_mean, before) == (tracked == 0)
    assert net.training and net.track_running_stats and net.weight.requires_grad


@pytest.mark.parametrize(
    ("member", "passes", "wrong"),
    [("passes", ("nat", "advs"), "advs"), ("awp_passes", ("adv.nograd",), "adv.nograd"), ("passes", ("far.",), "far.")],
)
def test_a_misspelt_pass_is_refused(member, passes, wrong):
    method = type("Mine", (LBGAT,), {member: passes})
    net = new_tiny_net(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(UserError, match=f"^Mine has a pass '{wrong}': choose adv, nat, guide, far, helper, frozen"):
        create_step(net, net, method(), optimizer, ATTACK)


def test_a_method_with_passes_of_its_own_does_not_inherit_those_of_weight_perturbation():
    class Mine(TRADES):
        passes = ("nat", "adv")

    class Named(TRADES):
        tag = "named"

    class Passes:
        passes = ("nat", "adv")

    class Mixed(Passes, TRADES):
        pass

    assert TRADES.awp_passes == Named.awp_passes == ("adv", "nat") and Mine.awp_passes == Mixed.awp_passes == ()


def test_counting_the_cost_leaves_the_choice_of_cudnns_algorithms(monkeypatch):
    """Batches of FAT shrink within a step: for each size cuDNN would time its algorithms anew."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    config = TrainConfig(method="fat", student="wrn-10-1")
    of_at = step_gflop(replace(config, method="at", parameters={}), 10, 32, 32)
    assert torch.backends.cudnn.benchmark
    assert step_gflop(config, 10, 32, 32) == of_at
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("method", ["wa-trades", "score", "yopo", "free", "dajat"])
def test_the_cost_of_every_kind_of_step_is_counted(method):
    assert step_gflop(TrainConfig(method=method, student="wrn-10-1", guide="wrn-10-1"), 10, 32, 32) > 0


def test_a_misspelt_step_is_a_sentence():
    net, objective = new_tiny_net(4, 1), create_objective("trades")
    objective.step = "standrad"
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(UserError, match="TRADES has the step 'standrad': choose standard, free"):
        create_step(net, None, objective, optimizer, AttackSpec(0.1, 0.01, 1))
