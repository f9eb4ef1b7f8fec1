"""What several tests share: the golden file, the digits, tiny networks, and AutoAttack's official front end."""

import os
from collections import OrderedDict
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyautoattack
import torch
from torch import nn

from datasets import load_dataset
from datasets.loader import to_device, to_float
from engine.config import TrainConfig
from evaluation.attack_loop import attack_chunk, attack_images
from evaluation.autoattack.suite import STANDARD, SUITE_NORMS, Suite
from evaluation.results import PerImageResults
from losses import METHODS, create_objective, find_method
from models import create_model

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
GOLDEN_PATH = Path(os.environ.get("LBGAT_GOLDEN", ROOT / "tests" / "golden.npz"))
CPU = torch.device("cpu")
DIGITS = load_dataset("digits")
QUICK = ("--version", "custom", "--attacks", "apgd-ce", "--n-examples", 6, "--batch-size", 2, "--epsilon", "0.02")
CHECKS = [
    "black box not below white box",
    "accuracy falls to zero as epsilon grows",
    "PGD-100 not better than APGD",
    "noise costs little accuracy",
]


NET_SOURCE = """
from torch import nn

class MyNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.classify = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.classify(self.features(x).view(len(x), -1))  # view: of contiguous memory only

def seven(num_classes):
    return 7

def wrong_size(num_classes):
    return MyNet(num_classes + 1)

def no_argument():
    return MyNet(10)

def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

class Pair(MyNet):
    def forward(self, x):
        return super().forward(x), None
"""


def tiny_net(state: dict[str, torch.Tensor]) -> nn.Sequential:
    """The golden cases' network (conv-BN-ReLU twice, pool, linear), its widths read off a state dict."""
    widths = [state["conv1.weight"].shape[0], state["conv2.weight"].shape[0]]
    channels, classes = state["conv1.weight"].shape[1], state["fc.weight"].shape[0]
    net = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(widths[0]),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(widths[0], widths[1], 3, stride=2, padding=1, bias=False),
            bn2=nn.BatchNorm2d(widths[1]),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(widths[1], classes),
        )
    ).double()
    net.load_state_dict(state)
    return net


def new_tiny_net(width: int, seed: int, classes: int = 5) -> nn.Sequential:
    """The golden cases' network, freshly initialised."""
    torch.manual_seed(seed)
    layers = nn.ModuleDict(
        {
            "conv1": nn.Conv2d(3, width, 3, bias=False),
            "bn1": nn.BatchNorm2d(width),
            "conv2": nn.Conv2d(width, 2 * width, 3, bias=False),
            "bn2": nn.BatchNorm2d(2 * width),
            "fc": nn.Linear(2 * width, classes),
        }
    )
    return tiny_net(layers.double().state_dict())


class Golden:
    """Numbers that the authors' programs produce; keys are ``case/what``."""

    def __init__(self, path: Path):
        self.arrays = dict(np.load(path, allow_pickle=False))
        self.cases = sorted({key.split("/")[0] for key in self.arrays} - {"meta", "forward"})
        self.networks = sorted({key.split("/")[1] for key in self.arrays if key.startswith("forward/")})
        self.steps = int(self.arrays["meta/steps"])
        self.num_classes = int(self.arrays["meta/num_classes"])
        self.sin_factor = float(self.arrays.get("meta/sin_factor", 0.0))

    def get(self, *path: object) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays["/".join(map(str, path))]))

    def state(self, case: str, which: str) -> dict[str, torch.Tensor]:
        prefix = f"{case}/{which}/"
        return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in self.arrays.items() if k.startswith(prefix)}


GOLDEN = Golden(GOLDEN_PATH)


def digits(n):
    pixels, labels = to_device(DIGITS.x_test[:n], DIGITS.y_test[:n], CPU)
    return to_float(pixels), labels


def tiny():
    """Fast enough for 5,000 queries: two strided convolutions on 16x16 images."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 32, 2, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def trained(name):
    """A network of ``tests/data/make_networks.py``, in eval mode and frozen."""
    model = tiny() if name.startswith("tiny") else create_model("wrn-10-1", 10)
    model.load_state_dict(torch.load(DATA / f"{name}.pt", weights_only=True))
    return model.eval().requires_grad_(False)


def suite(
    norm="linf", epsilon=0.1, attacks=STANDARD, version="standard", batch_size=12, package=pyautoattack, **kwargs
):
    return Suite(package, attacks, norm, epsilon, 3, version, batch_size, **kwargs)


def attacked(model, suite, x, y):
    """Attack a chunk; return x_adv (the clean image where robust) and its arrays of ``PerImageResults``."""
    x_adv, broken_by = x.cpu().numpy().copy(), np.full(len(x), "", "U16")
    for step in attack_chunk(model, suite, x, y):
        x_adv[step.broken], broken_by[step.broken] = step.x_adv, step.name
    return {"x_adv": x_adv, "adversarial_prediction": step.prediction, "broken_by": broken_by}


def evaluated(model, suite, epsilons, n, results=None, save=lambda: None, max_saved=3):
    """The results of the first n digits, or of an interrupted evaluation of these."""
    x, y = digits(n)
    sizes = suite.batch_size, len(suite.attacks), len(epsilons), max_saved
    results = results or PerImageResults.empty(n, (3, 16, 16), *sizes)
    attack_images(model, suite, epsilons, lambda part: (x[part], y[part]), results, save)
    return results


def assert_same_results(ours, theirs):
    """But for the seconds."""
    for field in fields(PerImageResults):
        if field.name != "seconds":
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name), field.name)


def official(model, x, y, norm, epsilon, batch_size, attacks=None):
    """The official front end, called once per chunk."""
    x_adv, prediction = [], []
    for chunk_x, chunk_y in zip(x.split(batch_size), y.split(batch_size), strict=True):
        version = {"version": "custom", "attacks": attacks} if attacks else {"version": "standard"}
        front_end = pyautoattack.AutoAttack(model, norm=norm, eps=epsilon, seed=3, **version)
        result = front_end.run_standard_evaluation(chunk_x, chunk_y, batch_size=batch_size)
        x_adv.append(result[0])
        prediction.append(result[1])
    return torch.cat(x_adv).numpy(), torch.cat(prediction).numpy()


class Short(pyautoattack.AutoAttack):
    """The authors' front end with less of what costs time: tests/evaluation/test_attack_loop.py runs the whole."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.square.n_queries = 125
        self.apgd_targeted.n_target_classes = self.fab.n_target_classes = 3
        self.apgd.eot_iter = min(self.apgd.eot_iter, 3)
        self.fab.n_restarts = min(self.fab.n_restarts, 2)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 50


def short_package():
    """A stand-in for the package, with ``Short`` as its front end."""
    return SimpleNamespace(__name__="pyautoattack", AutoAttack=Short)


def short_run(model, suite, x, y):
    """What ``Short`` itself makes of the images: adversarial ones and their predictions."""
    settings = {"norm": SUITE_NORMS[suite.norm], "eps": suite.epsilon, "seed": suite.seed}
    if suite.version == "custom":
        settings |= {"version": "custom", "attacks": list(suite.attacks)}
    front_end = Short(model, **{"version": "standard" if suite.version == "dev" else suite.version, **settings})
    if suite.version == "dev":
        front_end.attacks_to_run = ["apgd-ce", "apgd-t"]
    return front_end.run_standard_evaluation(x, y, batch_size=len(x))


def verdicts(n, num_classes, seed=0):
    """Labels, clean predictions and broken_by of an evaluation that never took place."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, n)
    clean = np.where(random.random(n) < 0.7, labels, (labels + 1) % num_classes)
    attacked = random.choice(["", *STANDARD], n, p=[0.4, 0.3, 0.2, 0.1, 0])
    return labels, clean, np.where(clean == labels, attacked, "clean").astype("U16")


def objective(method, num_classes=0, label_smoothing=0.0, **values):
    """The objective of a method, given more values than it may have parameters."""
    own = {p.name for p in METHODS[method].parameters}
    return create_objective(method, num_classes, label_smoothing, **{k: v for k, v in values.items() if k in own})


def innermost(step):
    """The step within its wrappers."""
    return innermost(vars(step)["step"]) if "step" in vars(step) else step


def run_step(step, views, y, starts):
    """One batch of a training step, the attack on each view from a given start; returns the terms."""
    innermost(step).draw_starts = lambda views, generator: list(starts) if "adv" in step.objective.passes else []
    return step(views, y)


TINY_RUN = {
    "dataset": "digits", "student": "wrn-10-1", "guide": "wrn-10-1", "limit_train": 40, "batch_size": 16,
    "num_steps": 2, "epochs": 3, "eval_size": 12, "val_size": 40, "save_freq": 2, "device": "cpu", "mark": "run",
    "step_size": 0.02, "decay_epochs": (3,), "seed": 2,
}  # fmt: skip


def tiny_run(folder, **changes):
    """The configuration of a training run of seconds in a folder: three epochs of three steps."""
    paths = {"log_dir": str(folder / "Logs"), "checkpoint_dir": str(folder / "checkpoints")}
    return TrainConfig.create(**{**TINY_RUN, **paths, **changes})


def command_line(config):
    """The arguments that make the configuration, without the method's parameters that have their defaults."""
    argv, defaults = [], find_method(config.method).complete({})
    for name, value in config.as_dict().items():
        if value is False or (name in defaults and value == defaults[name]):
            continue
        argv.append(f"--{name.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    return argv


def network(seed=0):
    """A wrn-10-1 whose BatchNorm does something, for 16x16 images."""
    torch.manual_seed(seed)
    model = create_model("wrn-10-1", 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return model.eval()


def images(n):
    x = (torch.rand(n, 3, 1, 1) + 0.5 * torch.rand(n, 3, 16, 16)).clamp(0, 1)
    with torch.no_grad():
        return x, network()(x).argmax(1)


def answers(model, x):
    """Logits, and the gradient of a weighted sum of them, as an attack queries them."""
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    weights = torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits)
    return logits.detach(), torch.autograd.grad((weights * logits).sum(), leaf)[0]
