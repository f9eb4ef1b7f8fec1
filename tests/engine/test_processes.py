"""Several processes train the weights that one trains; they stop together, and others may resume."""

import copy
import json
import os
import random
import signal
import time
from contextlib import contextmanager

import pytest
import torch

import datasets.loader
import engine.networks
import engine.trainer
import engine.validate
import train_lbgat
from attacks.pgd import AttackSpec, frozen, perturb, starting_point
from benchmarks.measure import forward_gflop
from benchmarks.processes import Store, fork, status, together, wait_until
from engine.logger import Logger
from engine.steps import create_step
from engine.steps.standard import StandardStep
from engine.trainer import Trainer
from losses import create_objective
from models.accelerate import NO_ACCELERATION
from tests.helpers import new_tiny_net, tiny_run
from utils.distributed import exit_cleanly
from utils.errors import UserError

# Five steps: four of 8 images, and one of 2, of which some of three or four processes get none.
FIVE = {"limit_train": 34, "batch_size": 8, "epochs": 1, "eval_size": 6, "val_size": 6}
RUNS = {
    "LBGAT6": {"method": "lbgat", "beta": 6.0},
    "TRADES-AWP": {"method": "trades", "awp_gamma": 0.01},
    # Two epochs: the second has the class prior of the first.
    "IKL, averaged": {"method": "ikl", "average_every": "step", "batch_size": 16, "epochs": 2},
    "two views, AWP": {
        "method": "lbgat", "augment": "cutout", "augment_view_weight": 0.3, "awp_gamma": 0.01, "epsilon_ramp": "linear",
    },
    "IKL with two views, accumulated": {
        "method": "ikl", "accumulate": 2, "awp_gamma": 0.01, "augment": "cutout", "augment_view_weight": 0.3,
    },
    "GKL, whose term is a ratio of sums over the batch": {"method": "gkl", "batch_size": 16, "epochs": 2},
    "Free, whose perturbation stays with the position in the batch": {"method": "free", "replays": 2.0, "epochs": 2},
    "YOPO": {"method": "yopo"},
    "TRADES-YOPO": {"method": "trades-yopo"},
    "FAT, with noise in each step": {"method": "fat"},
    "backward smoothing": {"method": "backward-smoothing"},
    "Rice, attacked in train mode": {"method": "rice"},
    "WA-TRADES, attacked on the batch's statistics": {"method": "wa-trades", "no_norm_decay": True},
    "DAJAT": {"method": "dajat", "augment": "cutout", "awp_gamma": 0.01},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setattr(Logger, "plot", lambda self, final=False: None)


@contextmanager
def float64(monkeypatch):
    """All in float64, and the networks of two convolutions."""
    torch.set_default_dtype(torch.float64)
    for module in (engine.trainer, engine.networks):
        monkeypatch.setattr(module, "create_model", lambda name, classes, *_: new_tiny_net(6, len(name), classes))
    for module in (datasets.loader, engine.validate):
        monkeypatch.setattr(module, "to_float", lambda images: images.double() / 255)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def _float64(monkeypatch):
    with float64(monkeypatch):
        yield


def train(folder, size, **changes):
    """Train with so many processes in ``folder/SIZE``; return last.pt and the metrics."""
    folder = folder / str(size)
    folder.mkdir(exist_ok=True)
    config = tiny_run(folder, **changes)
    codes, output = together(lambda group: Trainer(config, group).fit(), folder, size)
    assert codes == [0] * size, output
    lines = (folder / "Logs/run/metrics.jsonl").read_text().splitlines()
    return torch.load(folder / "checkpoints/run/last.pt"), [json.loads(line) for line in lines]


def tensors_of(state, name=""):
    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from tensors_of(value, f"{name}/{key}")


def assert_close(ours, theirs, bound=1e-10):
    ours, theirs = dict(tensors_of(ours)), dict(tensors_of(theirs))
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name in ours:
        assert (ours[name].double() - theirs[name].double()).abs().max() <= bound, name


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", RUNS)
def test_any_number_of_processes_gives_the_weights_of_one(tmp_path, name):
    """In float64, to 1e-10; and the same metrics."""
    sizes = (1, 2, 3, 4) if name in list(RUNS)[:4] else (1, 3)
    runs = {size: train(tmp_path, size, **{**FIVE, **RUNS[name]}) for size in sizes}
    alone, metrics = runs.pop(1)
    for size, (state, theirs) in runs.items():
        assert_close(state, alone)
        assert state["processes"] == size
        for ours, entry in zip(theirs, metrics, strict=True):
            same = ours.keys() - {"seconds", "images_per_second", "crc32", "split"}
            assert {k: ours[k] for k in same} == pytest.approx({k: entry[k] for k in same}, rel=1e-9)


@pytest.mark.usefixtures("_float64")
def test_local_statistics_give_the_mean_of_the_shards_gradients(tmp_path):
    """To 1e-10, as of one process that computes the shards one after the other; statistics are those of process 0's.
    One process that accumulates over as many parts has these gradients too."""
    attack = AttackSpec(epsilon=0.1, step_size=0.05, num_steps=2)
    x, y = torch.rand(7, 3, 8, 8), torch.arange(7) % 5

    def one_step(nets, **options):
        """At a learning rate of 1, the weights move by the gradients."""
        optimizer = torch.optim.SGD([p for net in nets for p in net.parameters()], lr=1.0)
        objective = create_objective("lbgat", beta=6.0)
        step = create_step(*nets, objective, optimizer, attack, acceleration=NO_ACCELERATION, **options)
        step([x], y, torch.Generator().manual_seed(0))
        return step

    def main(group):
        nets = [new_tiny_net(6, seed) for seed in (0, 1)]
        copies = copy.deepcopy(nets)
        step = one_step(nets, group=group, batch_norm="local")
        accumulated = copy.deepcopy(copies)
        one_step(accumulated, accumulate=3)
        start = starting_point(x, attack, torch.Generator().manual_seed(0))
        with frozen(copies[0]):
            x_adv = perturb(copies[0], x, y, step.objective.inner, attack, start=start)
        gradients = []
        for rows in (slice(0, 3), slice(3, 5), slice(5, 7)):
            shards = copy.deepcopy(copies) if rows.start else copies  # whose statistics stay
            for net in shards:
                net.train()
            logits = {"adv": shards[0](x_adv[rows]), "nat": shards[0](x[rows]), "guide": shards[1](x[rows])}
            loss = sum(step.objective.outer(logits, y[rows]).values())
            parameters = [p for net in shards for p in net.parameters()]
            gradients.append(torch.autograd.grad(loss * (rows.stop - rows.start) / 7, parameters))
        for net, parts, expected in zip(nets, accumulated, copies, strict=True):
            for p, q, before in zip(net.parameters(), parts.parameters(), expected.parameters(), strict=True):
                assert (p - q).abs().max() <= 1e-10
                p.data = before - p
            for ours, theirs in zip(net.buffers(), expected.buffers(), strict=True):
                assert (ours - theirs).abs().max() <= 1e-12
        for ours, *theirs in zip([p for net in nets for p in net.parameters()], *gradients, strict=True):
            assert (ours - sum(theirs)).abs().max() <= 1e-10

    assert together(main, tmp_path, 3) == ([0, 0, 0], "")


@pytest.mark.usefixtures("_float64")
def test_local_and_synchronised_statistics_differ(tmp_path):
    (local, _), (synchronised, _) = (
        train(tmp_path, 3, **{**FIVE, "batch_norm": kind, "mark": "run", "resume": "none"})
        for kind in ("local", "synchronised")
    )
    assert all(torch.isfinite(value).all() for _, value in tensors_of(local))  # a process had no rows of the last batch
    with pytest.raises(AssertionError):
        assert_close(local, synchronised, 1e-4)


# -- stopped, killed and resumed ---------------------------------------------------------------------------------------

LONG = {**FIVE, "method": "trades", "awp_gamma": 0.01, "average_every": "epoch", "epochs": 4, "val_size": 6}


@contextmanager
def processes(folder, size, **changes):
    """The program in so many processes, all in float64; -> their ids."""
    config, store = tiny_run(folder, **{**LONG, **changes}), Store()

    def main():
        train_lbgat.parse_train = lambda argv: config
        train_lbgat.main([])

    yield [fork(main, folder / "output", rank, size, store.port) for rank in range(size)]
    del store


def end(pids, seconds=20):
    began = time.monotonic()
    codes = [status(pid) for pid in pids]
    assert time.monotonic() - began < seconds
    return codes


def epochs_done(folder):
    path = folder / "Logs/run/metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """last.pt of one process that was left alone."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch, float64(patch):
        patch.setattr(Logger, "plot", lambda self, final=False: None)
        return train(folder, 1, **LONG)[0]


@pytest.mark.usefixtures("_float64")
def test_one_is_told_to_stop_and_all_stop_together(tmp_path, alone):
    with processes(tmp_path, 3) as pids:
        wait_until(lambda: epochs_done(tmp_path) >= 1)
        os.kill(pids[1], signal.SIGTERM)
        assert end(pids) == [143, 143, 143]
    output = (tmp_path / "output").read_text()
    assert output.count("stopped by SIGTERM at epoch ") == 1 and "Traceback" not in output and "error" not in output
    state = torch.load(tmp_path / "checkpoints/run/last.pt")
    assert (state["processes"], state["threads"]) == (3, 1)
    with processes(tmp_path, 2) as pids:
        assert end(pids, 60) == [0, 0]
    log = (tmp_path / "Logs/run/train.log").read_text()
    assert "warning: saved with 3 processes, now 2: the weights may differ by rounding" in log
    assert_close(torch.load(tmp_path / "checkpoints/run/last.pt"), alone)


@pytest.mark.usefixtures("_float64")
def test_killed_and_resumed_by_other_numbers_of_processes(tmp_path, alone):
    """One of three is killed, all of two, then one process finishes. The others end within seconds, with one line."""
    random.seed()
    for size, victims in ((3, 1), (2, 2)):
        before = epochs_done(tmp_path)
        with processes(tmp_path, size) as pids:
            wait_until(lambda before=before: epochs_done(tmp_path) > before)
            time.sleep(random.uniform(0, 0.5))
            killed = random.sample(pids, victims)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            codes = end(pids)
        assert {codes[pids.index(pid)] for pid in killed} == {-signal.SIGKILL}
        assert {code for pid, code in zip(pids, codes, strict=True) if pid not in killed} <= {1}
    output = (tmp_path / "output").read_text()
    assert (
        "Traceback" not in output and output.count("error: ") == 1 and output.count("lost contact with torchrun") == 1
    )
    with processes(tmp_path, 1) as pids:
        assert end(pids, 60) == [0]
    assert_close(torch.load(tmp_path / "checkpoints/run/last.pt"), alone)


def test_an_error_of_one_ends_all_with_its_sentence(tmp_path):
    """Process 0 cannot write; later another process fails in the middle of a step."""
    (tmp_path / "checkpoints").write_text("a file")
    with processes(tmp_path, 3) as pids:
        assert end(pids, 60) == [1, 1, 1]
    output = (tmp_path / "output").read_text()
    assert output.startswith("error: cannot write to ") and output.count("\n") == 1

    def main(group):
        def fail(*_):
            raise UserError("the third process has no memory")

        if group.rank == 2:
            StandardStep.update = fail
        with exit_cleanly(group):
            Trainer(tiny_run(tmp_path / "second", **FIVE), group).fit()

    (tmp_path / "output").unlink()
    (tmp_path / "second").mkdir()
    codes, output = together(main, tmp_path, 3)
    assert codes == [1, 1, 1]
    assert [line for line in output.splitlines() if "error" in line] == ["error: the third process has no memory"]


def test_other_settings_in_one_process_are_refused(tmp_path):
    def main(group):
        with exit_cleanly(group):
            Trainer(tiny_run(tmp_path, **{**FIVE, "lr": 0.1 + group.rank}), group)

    codes, output = together(main, tmp_path, 2)
    assert codes == [1, 1]
    assert output == "error: process 1 has other settings or data (--lr): give all processes the same\n"


# -- the same bits from run to run; the hardware's limit ---------------------------------------------------------------


def test_deterministic_is_recorded_and_what_is_not_possible_is_one_sentence(tmp_path, monkeypatch):
    before = torch.are_deterministic_algorithms_enabled()
    try:
        Trainer(tiny_run(tmp_path, method="natural", epochs=1, deterministic=True)).fit()
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        settings = json.loads((tmp_path / "Logs/run/config.json").read_text())
        assert (settings["deterministic"], settings["processes"]) == (True, 1)
        assert torch.load(tmp_path / "checkpoints/run/last.pt")["config"]["deterministic"] is True
        best = torch.load(tmp_path / "checkpoints/run/best.pt")
        assert (best["processes"], best["threads"], best["config"]["deterministic"]) == (
            1,
            torch.get_num_threads(),
            True,
        )

        def not_possible(*_):
            raise RuntimeError(
                "some_backward_cuda does not have a deterministic implementation, but you set ... . More"
            )

        monkeypatch.setattr(StandardStep, "__call__", not_possible)
        sentence = (
            "--deterministic is not possible here: some_backward_cuda does not have a deterministic implementation"
        )
        with pytest.raises(UserError, match=sentence):
            Trainer(tiny_run(tmp_path, method="natural", epochs=1, deterministic=True, resume="none")).fit()
    finally:
        torch.use_deterministic_algorithms(before)


def test_part_of_the_peak_is_of_all_processes_together(tmp_path, monkeypatch):
    """On a device that does 1 TFLOP/s; wrn-10-1 is 3 passes of a forward pass in natural training."""
    monkeypatch.setattr(engine.trainer, "peak_flops", lambda device, precision: 1e12)
    trainer = Trainer(tiny_run(tmp_path, method="natural", epochs=1))
    forward = forward_gflop("wrn-10-1", 10, 16)
    assert trainer.gflop == pytest.approx(3 * forward, rel=0.05)
    trainer.fit()
    (entry,) = [json.loads(line) for line in (tmp_path / "Logs/run/metrics.jsonl").read_text().splitlines()]
    assert entry["of_peak"] == pytest.approx(entry["images_per_second"] * trainer.gflop * 1e9 / 1e12)
    assert f"images/s ({entry['of_peak']:.0%} of the peak)  left " in (tmp_path / "Logs/run/train.log").read_text()


@pytest.mark.parametrize(("flags", "sentence"), [
    ({"accumulate": 3}, "--accumulate 3 does not divide --batch-size 16: choose one that does"),
    ({"batch_norm": "global"}, "--batch-norm global: choose synchronised or local"),
])  # fmt: skip
def test_impossible_settings(tmp_path, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny_run(tmp_path, **flags)
