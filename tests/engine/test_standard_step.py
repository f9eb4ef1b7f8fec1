"""The fast step is the same step: every acceleration against the plain reference that the benchmarks time."""

import warnings
from dataclasses import replace

import pytest
import torch

from attacks.pgd import AttackSpec, starting_point
from benchmarks.measure import forward_gflop, lbgat_step_gflop
from benchmarks.reference import ReferenceStep
from benchmarks.train_step import measure, parse
from engine.steps import create_step
from engine.steps.cuda_graph import GraphedStep
from engine.validate import clean_accuracy
from losses import METHODS, create_objective
from models import create_model
from models.accelerate import NO_ACCELERATION, AcceleratedModel, AccelerationConfig, choose_acceleration, warn_once
from tests.helpers import new_tiny_net, run_step

ATTACK = AttackSpec(epsilon=0.031, step_size=0.007, num_steps=10)


def nets_and_optimizer(dtype=torch.float32, student="wrn-10-1"):
    torch.manual_seed(3)
    nets = [create_model(name, 10).to(dtype) for name in (student, "wrn-10-1")]
    optimizer = torch.optim.SGD([p for net in nets for p in net.parameters()], lr=0.1, momentum=0.9, weight_decay=2e-4)
    return *nets, optimizer


def batch(n=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(n, 3, 32, 32, generator=generator).to(dtype)
    y = torch.randint(10, (n,), generator=generator)
    return x, y, starting_point(x, ATTACK, generator)


ACCELERATIONS = {
    "plain": NO_ACCELERATION,
    "channels_last": AccelerationConfig(fold=False),
    "folded": AccelerationConfig(channels_last=False),
    "all, CPU": AccelerationConfig(),
}


@pytest.mark.parametrize("name", ACCELERATIONS)
def test_float32_attack_equals_the_reference(name):
    """From each iterate of the reference's attack, one fast step gives the same next iterate, but for the signs of
    gradients within rounding of zero: below 1e-3 of the pixels.

    Whole float32 trajectories are not compared: 10 signed steps amplify rounding. The float64 test below compares them.
    """
    x, y, start = batch()
    *nets, optimizer = nets_and_optimizer(student="wrn-16-2")
    one = replace(ATTACK, num_steps=1)
    fast = create_step(*nets, create_objective("lbgat", beta=6.0), optimizer, one, acceleration=ACCELERATIONS[name])
    reference = ReferenceStep(*nets, optimizer, num_steps=1)
    iterate = start
    for _ in range(ATTACK.num_steps):
        expected = reference.attack(x, iterate)
        flipped = ((fast.adversarial([x], y, [iterate])[0] - expected).abs() > 1e-6).double().mean().item()
        assert flipped < 1e-3
        if name == "plain":
            assert flipped == 0
        iterate = expected


@pytest.mark.parametrize("beta", [0.0, 6.0])
@pytest.mark.parametrize("name", ACCELERATIONS)
def test_float32_losses_equal_the_reference(name, beta):
    """On the same adversarial images, to 1e-5, over two steps."""
    x, y, start = batch()
    *nets, optimizer = nets_and_optimizer(student="wrn-16-2")
    reference = ReferenceStep(*nets, optimizer, beta=beta)
    expected = [reference(x, y, start.clone()) for _ in range(2)]
    *nets, optimizer = nets_and_optimizer(student="wrn-16-2")
    fast = create_step(*nets, create_objective("lbgat", beta=beta), optimizer, ATTACK, acceleration=ACCELERATIONS[name])
    for x_adv, terms in expected:
        fast.x_adv = [x_adv]
        for term, value in fast.update([x], y).items():
            assert value.item() == pytest.approx(terms[term].item(), rel=1e-5, abs=1e-5)


def test_float64_weights_equal_the_reference_after_three_steps():
    x, y, start = batch(8, torch.float64)
    states = []
    for fast in (False, True):
        *nets, optimizer = nets_and_optimizer(torch.float64)
        if fast:
            step = create_step(
                *nets, create_objective("lbgat", beta=6.0), optimizer, ATTACK, acceleration=AccelerationConfig()
            )
        else:
            step = ReferenceStep(*nets, optimizer, beta=6.0)
        for _ in range(3):
            run_step(step, [x], y, [start.clone()]) if fast else step(x, y, start.clone())
        states.append([net.state_dict() for net in nets])
    for expected, actual in zip(*states, strict=True):
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-9, atol=1e-9)


def test_untraceable_network_is_attacked_unfolded():
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3 * 32 * 32, 10)

        def forward(self, x):
            return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))

    model = Branching()
    x, *_ = batch(4)
    assert torch.equal(AcceleratedModel(model, AccelerationConfig()).attack_logits(x), model(x))


def test_compiled_step_equals_eager_and_never_recompiles(monkeypatch):
    """Mode, last batch and epsilon change; the number of compiled graphs does not."""
    compiled = []
    real_compile = torch.compile

    def counting_backend(graph, example_inputs):
        compiled.append(len(example_inputs[0]) if example_inputs else 0)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **kw: real_compile(f, backend=counting_backend, **kw))
    results = []
    for acceleration in (AccelerationConfig(), AccelerationConfig(compile_batch_size=16)):
        *nets, optimizer = nets_and_optimizer(torch.float64)
        step = create_step(*nets, create_objective("lbgat", beta=0.0), optimizer, ATTACK, acceleration=acceleration)
        losses = []
        for i, n in enumerate((16, 16, 7, 16, 16)):
            x, y, start = batch(n, torch.float64)
            if i == 3:
                step.set_epoch(AttackSpec(epsilon=0.02, step_size=0.004, num_steps=10), 0.0)
            losses.append(sum(run_step(step, [x], y, [start]).values()).item())
            if i == 1:
                warm = len(compiled)
        results.append(losses)
    assert results[1] == pytest.approx(results[0], rel=1e-9)
    assert warm > 0
    assert len(compiled) == warm


class NoGraph:
    """Graphed without a GPU: captured on tensors of its own, which every call fills and reads."""

    captured = 0

    def __init__(self, function, inputs):
        NoGraph.captured += 1
        self.function, self.inputs = function, [tensor.clone() for tensor in inputs]

    def __call__(self, *inputs):
        for own, tensor in zip(self.inputs, inputs, strict=True):
            own.copy_(tensor)
        return self.function(*self.inputs)


def steps(acceleration, method="lbgat", device="cpu", dtype=torch.float64):
    """Losses and final weights of six steps: the fourth is small, and the attack changes before the fifth."""
    *nets, optimizer = nets_and_optimizer(dtype)
    nets = [net.to(device) for net in nets]
    optimizer = torch.optim.SGD([p for net in nets for p in net.parameters()], 0.1, momentum=0.9)
    parameters = {"lbgat": {"beta": 6.0}, "natural": {}}[method]
    step = create_step(
        *nets,
        create_objective(method, **parameters).to(device),
        optimizer,
        ATTACK,
        acceleration=acceleration,
        view_weights=(1.0, 0.3),
    )
    losses = []
    for i, n in enumerate((16, 16, 16, 7, 16, 16)):
        if i == 4:
            step.set_epoch(AttackSpec(epsilon=0.02, step_size=0.004, num_steps=10), 0.0)
        x, y, start = (tensor.to(device) for tensor in batch(n, dtype))
        x, start = x[..., ::2, ::2], start[..., ::2, ::2]
        terms = run_step(step, [x, x.flip(3)], y, [start, start.flip(3)])
        assert len(step.x_adv) == (0 if method == "natural" else 2)
        losses.append({name: term.item() for name, term in terms.items()})
    return losses, [value for net in nets for value in net.state_dict().values()]


@pytest.mark.parametrize("method", ["lbgat", "natural"])
def test_replayed_steps_equal_eager_ones(monkeypatch, method):
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    monkeypatch.setattr("engine.steps.cuda_graph.Graphed", NoGraph)
    NoGraph.captured = 0
    losses, weights = steps(AccelerationConfig(compile_batch_size=16, cuda_graphs=True), method)
    expected_losses, expected_weights = steps(AccelerationConfig(), method)
    assert NoGraph.captured == 2  # and once more when the attack changed
    assert losses == expected_losses
    assert all(torch.equal(*pair) for pair in zip(weights, expected_weights, strict=True))


def test_a_failing_capture_falls_back_to_separate_kernels(monkeypatch, _no_warning_yet):
    tried = []

    def refuse(function, inputs):
        tried.append(len(inputs))
        raise RuntimeError("operation not permitted when stream is capturing\nlong story")

    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    monkeypatch.setattr("engine.steps.cuda_graph.Graphed", refuse)
    with pytest.warns(UserWarning, match=r"no CUDA graph \(operation not permitted when stream is capturing\)"):
        losses, _ = steps(AccelerationConfig(compile_batch_size=16, cuda_graphs=True))
    assert losses == steps(AccelerationConfig())[0]
    assert len(tried) == 1  # not again when the attack changes


def test_the_graph_follows_a_number_that_the_method_changes(monkeypatch):
    class Ramp(METHODS["trades"]):
        def begin_epoch(self, epoch):
            self.beta = float(epoch)

    monkeypatch.setattr("engine.steps.cuda_graph.Graphed", NoGraph)
    x, y, start = batch(16, torch.float64)
    terms, captured = [], NoGraph.captured
    for graphed in (False, True):
        net, objective = new_tiny_net(4, 1).double(), Ramp()
        step = create_step(net, None, objective, torch.optim.SGD(net.parameters(), 0.0), ATTACK)
        step = GraphedStep(step, 16) if graphed else step
        for epoch in (1, 1, 1, 1, 2, 2, 3):
            objective.begin_epoch(epoch)
            terms.append(run_step(step, [x], y % 4, [start])["kl"].item())
    assert terms[7:] == pytest.approx(terms[:7], rel=1e-12) and NoGraph.captured - captured == 3


class Foreign(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = new_tiny_net(4, 1)

    def forward(self, images):
        return self.net(images)


def test_only_known_networks_are_replayed(monkeypatch):
    """Another one may do in Python what changes from batch to batch, which a graph would freeze."""
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    for net, graphed in ((create_model("wrn-10-1", 10), True), (Foreign(), False)):
        objective, optimizer = create_objective("at"), torch.optim.SGD(net.parameters(), 0.1)
        acceleration = AccelerationConfig(compile_batch_size=16, cuda_graphs=True)
        step = create_step(net, None, objective, optimizer, ATTACK, acceleration=acceleration)
        assert isinstance(step, GraphedStep) == graphed


def test_the_graph_ends_where_the_step_can_no_longer_be_captured(monkeypatch):
    monkeypatch.setattr("engine.steps.cuda_graph.Graphed", NoGraph)
    net = new_tiny_net(4, 1).double()
    objective, optimizer = create_objective("at"), torch.optim.SGD(net.parameters(), 0.1)
    step = GraphedStep(create_step(net, None, objective, optimizer, ATTACK), 16)
    x, y, start = batch(16, torch.float64)
    y = y % 4
    held = []
    for awp_gamma in (0.0, 0.0, 0.0, 0.0, 0.01):
        step.set_epoch(ATTACK, awp_gamma)
        run_step(step, [x], y, [start])
        held.append(step._graph is not None)
    assert held == [False, False, True, True, False] and step._gradients == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is false")
def test_replayed_steps_equal_eager_ones_on_cuda():
    losses, weights = steps(AccelerationConfig(compile_batch_size=16, cuda_graphs=True), device="cuda")
    expected_losses, expected_weights = steps(AccelerationConfig(compile_batch_size=16), device="cuda")
    for actual, expected in zip(losses, expected_losses, strict=True):
        assert actual == pytest.approx(expected, rel=1e-6)
    for actual, expected in zip(weights, expected_weights, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.fixture
def _no_warning_yet():
    warn_once.cache_clear()


def _broken_compile(model, **_):
    def run(images):
        raise RuntimeError("no compiler here")

    return run


@pytest.mark.parametrize("accumulate", [1, 2])
def test_failing_compilation_falls_back_with_one_warning(monkeypatch, _no_warning_yet, accumulate):
    x, y, start = batch(8)
    *nets, optimizer = nets_and_optimizer()
    eager = create_step(*nets, create_objective("lbgat", beta=6.0), optimizer, ATTACK, accumulate=accumulate)
    expected = run_step(eager, [x], y, [start.clone()])
    monkeypatch.setattr(torch, "compile", _broken_compile)
    *nets, optimizer = nets_and_optimizer()
    step = create_step(
        *nets,
        create_objective("lbgat", beta=6.0),
        optimizer,
        ATTACK,
        acceleration=AccelerationConfig(compile_batch_size=8 // accumulate),
        accumulate=accumulate,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        terms = run_step(step, [x], y, [start.clone()])
    assert [str(w.message) for w in caught] == ["torch.compile failed (no compiler here): falling back to eager mode"]
    assert step._proven  # a later error is no compiler's
    assert {k: v.item() for k, v in terms.items()} == {k: v.item() for k, v in expected.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_step(step, [x], y, [start.clone()])


@pytest.mark.parametrize("at_once", [True, False])
def test_failing_compilation_in_an_evaluation_falls_back(monkeypatch, _no_warning_yet, at_once):
    """A run may resume with an evaluation, before any training step; torch.compile itself may refuse the Python."""

    def refusing_compile(model, **_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", refusing_compile if at_once else _broken_compile)
    model, (x, y, _) = create_model("wrn-10-1", 10), batch(8)
    expected = clean_accuracy(AcceleratedModel(model, AccelerationConfig()), (255 * x).byte(), y)
    with pytest.warns(UserWarning, match="no compiler here"):
        assert (
            clean_accuracy(AcceleratedModel(model, AccelerationConfig(compile_batch_size=4)), (255 * x).byte(), y)
            == expected
        )


def test_the_acceleration_of_each_device():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_acceleration(cpu, "auto", 128).compile_batch_size == 0
    assert choose_acceleration(cpu, "on", 128).compile_batch_size == 128
    assert choose_acceleration(cpu, "on", 128).cuda_graphs is False
    assert choose_acceleration(cuda, "auto", 128) == AccelerationConfig(compile_batch_size=128, cuda_graphs=True)
    assert choose_acceleration(cuda, "off", 128).compile_batch_size == 0


def test_gflop_of_a_step():
    """370 GFLOP an image for LBGAT6 at WRN-34-10 (27 student forwards, 3 of the guide)."""
    student, guide = forward_gflop("wrn-34-10", 100, 32), forward_gflop("resnet18-guide", 100, 32)
    assert student == pytest.approx(13.318, abs=2e-3)
    assert guide == pytest.approx(3.527, abs=1e-3)
    assert lbgat_step_gflop(student, guide, 10, 6.0) == pytest.approx(27 * student + 3 * guide)
    assert lbgat_step_gflop(student, guide, 10, 0.0) == pytest.approx(25 * student + 3 * guide)


def test_benchmark_figures_are_consistent(monkeypatch):
    monkeypatch.setattr("benchmarks.train_step.peak_gflops", lambda device, precision: 123.0)
    args = parse(["--student", "wrn-10-1", "--batch-size", "4", "--image-size", "8", "--repeats", "2", "--ablate"])
    figures = measure(args)
    ours = sorted(figures["seconds"]["ours"])
    median = (ours[0] + ours[1]) / 2
    assert figures["images_per_second"] == pytest.approx(4 / median)
    assert figures["gflops_per_second"] == pytest.approx(figures["gflop_per_image"] * 4 / median)
    assert figures["fraction_of_peak"] == pytest.approx(figures["gflops_per_second"] / 123.0)
    assert figures["ratio"] > 0
    assert figures["peak_memory_mib"] >= 0
    assert {"clean logits once", "all"} <= set(figures["ablation"])
    assert all(row["ratio"] > 0 for row in figures["beside_the_step"].values())
