"""Settings of train_lbgat.py and its flags."""

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from engine.config_file import read_config
from losses import METHODS, find_method
from models import canonical_name
from models.custom import short_name, source_hashes
from models.normalize import parse_normalization
from utils.errors import UserError
from utils.options import (
    COMPILE,
    LARGEST_INTEGER,
    PRECISIONS,
    CommonConfig,
    Parser,
    apply_num_classes,
    check_range,
    flag,
    option,
    parse_epsilon,
    require,
)

GUIDE_ALIASES = {"ResNet18_cifar": "resnet18-guide"}
SCHEDULES = ("multistep", "cosine", "onecycle")
RAMPS = ("none", "linear")
AVERAGES = ("none", "epoch", "step")
MOST_DECAYS = 20
EXAMPLES = """
examples:
  python train_lbgat.py --student wrn-10-1 --guide wrn-10-1 --epochs 2                    (digits, on a CPU)
  python train_lbgat.py --dataset cifar100 --method trades --beta 6 --precision bf16
  python train_lbgat.py --dataset cifar10 --method at --student my_net.py:MyNet --normalize cifar10
  python train_lbgat.py --config Logs/MARK/config.json --seed 2 --mark MARK-seed2         (a run once more)
"""


def parse_model(text: str) -> str:
    return GUIDE_ALIASES.get(text) or canonical_name(text)


def parse_epochs(text: str) -> tuple[int | Fraction, ...]:
    """``76,91`` -> (76, 91); ``3/4,9/10`` -> parts of the run; an empty string is no epoch at all."""
    try:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(Fraction(part) if "/" in part else int(part) for part in parts)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{text[:40]!r} is not a list of epochs: write 76,91, or 3/4,9/10 for parts of the run"
        ) from error


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CommonConfig):
    """Settings of train_lbgat.py; the defaults are the published recipe LBGAT6 (Cui et al. 2021).

    ``parameters`` are the method's own hyper-parameters by name; ``create`` takes them among the other settings.

    Raises:
        UserError: an unknown method, or a value outside of its range.
    """

    dataset: str = option("digits", "digits, cifar10, cifar100, or NAME for which DATA_DIR/NAME.npz exists", "data")
    batch_size: int = option(128, "images a step", "data", at_least=1)
    augment: str = option("none", "after crop and flip: none, autoaugment[-POLICY], randaugment or cutout", "data")
    augment_view_weight: float = option(
        0.0,
        "weight of the loss on a second, augmented view of each image; 0 augments the only view",
        "data",
        at_least=0,
    )
    extra_data: str = option(
        "", "npz file of further images (image: uint8 NHWC, label), mixed into every batch", "data"
    )
    extra_fraction: float = option(
        0.0, "part of every batch that comes from --extra-data, to the nearest image", "data", at_least=0, below=1
    )
    limit_train: int = option(0, "use only the first N training images; 0 is all", "data", at_least=0)
    val_size: int = option(
        0, "hold out N training images to choose the best checkpoint; 0 chooses on the test set", "data", at_least=0
    )

    method: str = option("lbgat", f"training method, described below\nchoices: {', '.join(METHODS)}", "method")
    parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    student: str = option(
        "wrn-34-10",
        "network to make robust: wrn-D-K, resnet18, preactresnet18; or yours: FILE.py:NAME or MODULE:NAME, which is "
        "run and called with num_classes",
        "method",
        parse=parse_model,
    )
    guide: str = option(
        "resnet18-guide",
        "natural classifier that guides LBGAT: resnet18-guide or any network, also yours; other methods have none",
        "method",
        parse=parse_model,
        aliases=("-teacher_model",),
    )
    normalize: str = option(
        "none",
        "mean and std inside student and guide, so that attacks stay in [0, 1]: none, cifar10, cifar100 or M,M,M/S,S,S",
        "method",
    )
    label_smoothing: float = option(
        0.0, "smoothing of the labels in the cross-entropies that training minimises", "method", at_least=0, below=1
    )

    step_size: float = option(
        0.007, "length of a step of the training attack, written like epsilon", "attack", parse=str, above=0
    )
    step_ratio: float = option(
        0.0, "if above 0, the step size is this part of the epoch's epsilon: 0.5 in IKL-AT", "attack", at_least=0
    )
    num_steps: int = option(10, "steps of the training attack", "attack", at_least=1)
    epsilon_ramp: str = option(
        "none",
        "linear trains with epsilon e / E in epoch e of E (IKL-AT); evaluation keeps epsilon",
        "attack",
        choices=RAMPS,
    )
    awp_gamma: float = option(
        0.0,
        "size of the adversarial weight perturbation of the student (the guide is not perturbed), relative to each "
        "weight's norm: 0.005 in TRADES-AWP, 0.01 in AT-AWP (Wu et al. 2020); 0 is none",
        "attack",
        at_least=0,
        below=1,
    )
    awp_start_epoch: int = option(
        1, "first epoch with weight perturbation: 10 in TRADES-AWP and IKL-AT", "attack", at_least=1
    )

    epochs: int = option(100, "passes over the training set", "optimisation", at_least=1)
    lr: float = option(0.1, "learning rate of SGD; with onecycle the highest", "optimisation", above=0)
    schedule: str = option(
        "multistep",
        "learning rate: multistep; cosine, 0.5 (1 + cos(pi e / (E + 1))) in epoch e of E (IKL-AT); onecycle, from 0 to "
        "--lr at 2/5 of the run and back to 0, step by step (Wong et al. 2020)",
        "optimisation",
        choices=SCHEDULES,
    )
    warmup_factor: float = option(
        0.2, "multistep: multiplies the learning rate in epoch 1; 1 is no warm-up", "optimisation", above=0
    )
    decay_epochs: tuple[int, ...] = option(
        (76, 91),
        "multistep: epochs from which the learning rate is divided by 10 once more, e.g. 76,91; or parts of the run, "
        "e.g. 3/4,9/10",
        "optimisation",
        parse=parse_epochs,
    )
    momentum: float = option(0.9, "momentum of SGD", "optimisation", at_least=0, below=1)
    weight_decay: float = option(2e-4, "weight decay of SGD", "optimisation", aliases=("--wd",), at_least=0)
    precision: str = option("fp32", "arithmetic of the forward passes", "optimisation", choices=PRECISIONS)
    compile: str = option("auto", "torch.compile; auto compiles on CUDA only", "optimisation", choices=COMPILE)

    average_every: str = option(
        "none",
        "keep an average of the student's weights, updated each epoch (IKL-AT) or step",
        "averaging",
        choices=AVERAGES,
    )
    average_tau: float = option(
        0.9, "average = tau average + (1 - tau) weights: 0.9 each epoch in IKL-AT", "averaging", at_least=0, below=1
    )

    eval_size: int = option(
        1000, "images on which PGD-20 measures robust accuracy after each epoch", "evaluation", at_least=1
    )
    patience: int = option(
        0,
        "stop after N epochs without better robust accuracy on --val-size images (Rice et al. 2020); 0 never",
        "evaluation",
        at_least=0,
    )

    save_freq: int = option(
        10, "write student-epochNNN.pt every N epochs, and after the last", aliases=("-s",), at_least=1
    )
    log_interval: int = option(50, "steps between checks of the loss and updates of the progress bar", at_least=1)
    tensorboard: bool = option(
        False, "scalars, adversarial images and hyper-parameters in LOG_DIR/MARK/tensorboard too"
    )
    max_minutes: float = option(0.0, "stop after this many minutes, ready for --resume auto; 0 is no limit", at_least=0)
    resume: str = option(
        "auto", "auto resumes from the mark's last.pt if there is one; none starts afresh; or the PATH of a last.pt"
    )
    checkpoint_dir: str = option("checkpoints", "checkpoints go to CHECKPOINT_DIR/MARK", aliases=("--model-dir",))

    def __post_init__(self) -> None:
        super().__post_init__()
        set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 (the class is frozen)
        set_("step_size", parse_epsilon(self.step_size, "step size", self.norm))
        parse_normalization(self.normalize)
        set_("parameters", find_method(self.method).complete(self.parameters))
        for f in dataclasses.fields(self):
            check_range(f, getattr(self, f.name))
        decays = [int(d * self.epochs) + 1 if isinstance(d, Fraction) else d for d in self.decay_epochs]
        require(
            all(1 <= decay <= LARGEST_INTEGER for decay in decays) and len(decays) <= MOST_DECAYS,
            f"--decay-epochs {','.join(map(str, self.decay_epochs))[:40]}: at most {MOST_DECAYS} epochs, from 1 on",
        )
        set_("decay_epochs", tuple(decays))
        require(
            bool(self.extra_data) == (self.extra_fraction > 0),
            "--extra-data FILE and --extra-fraction above 0 go together: pass both or neither",
        )
        require(
            self.augment_view_weight == 0 or self.augment != "none",
            f"--augment-view-weight {self.augment_view_weight} needs an --augment for the second view",
        )
        require(
            self.patience == 0 or self.val_size > 0,
            f"--patience {self.patience} needs held-out images to judge by: add --val-size N",
        )

    @classmethod
    def create(cls, **values: Any) -> "TrainConfig":
        """A configuration from settings and the method's parameters side by side, as ``as_dict`` returns them.

        Raises:
            UserError: a name is neither, or a value is outside of its range.
        """
        known = {f.name for f in dataclasses.fields(cls)} - {"parameters"}
        parameters = {name: value for name, value in values.items() if name not in known}
        return cls(**{name: value for name, value in values.items() if name in known}, parameters=parameters)

    def as_dict(self) -> dict[str, Any]:
        """Return every setting, including the method's own parameters, as config.json and the checkpoints hold them;
        of a user's network also the SHA-256 of its source, as ``sources``."""
        values = dataclasses.asdict(self)
        sources = source_hashes(self.student, self.guide)
        return values | values.pop("parameters") | ({"sources": sources} if sources else {})

    @property
    def run_name(self) -> str:
        """``lbgat0-cifar100-wrn34-10``: the mark, or a name made from method, data set and student."""
        method = find_method(self.method).tag.format(**self.parameters) + ("-awp" if self.awp_gamma else "")
        return self.mark or f"{method}-{self.dataset}-{short_name(self.student).replace('wrn-', 'wrn')}"


def describe_methods() -> str:
    """Every method with what it minimises, its own flags and its source, from the registry."""
    text = "methods (--method), what training minimises, their own flags, and their source:\n"
    for name, method in METHODS.items():
        text += f"\n  {name}\n    {(method.__doc__ or '').splitlines()[0]}\n"
        for p in method.parameters:
            text += f"    {flag(p.name)} {p.name.upper()}: {p.help}; {p.range} (default: {p.default:g})\n"
        text += f"    {method.source}\n"
    return text


def parse_train(argv: list[str] | None = None) -> TrainConfig:
    """Command line -> TrainConfig.

    Raises:
        UserError: unknown flag or impossible value.
    """
    legacy = {
        "--no-cuda": {"action": "store_true", "help": "as --device cpu"},
        "-num_classes": {"type": int, "help": "10 or 100; without --dataset, chooses cifar10 or cifar100"},
    }
    parser = Parser("Train a robust student with its guide.", TrainConfig, legacy, describe_methods() + EXAMPLES)
    owners: dict[str, list[str]] = {}
    for method, objective in METHODS.items():
        for p in objective.parameters:
            owners.setdefault(p.name, []).append(method)
    for name in owners:
        parser.groups["method"].add_argument(flag(name), dest=name, type=float, help=argparse.SUPPRESS)
    parser.groups["run"].add_argument(
        "--config", metavar="FILE.json", help="take the settings of a run's config.json; other flags override them"
    )
    values = vars(parser.parse_args(argv))
    if path := values.pop("config", None):
        values = read_config(path, TrainConfig, values) | values
    if values.pop("no_cuda", False):
        values["device"] = "cpu"
    apply_num_classes(values)
    method = values.get("method", TrainConfig.method)
    for name in owners.keys() & values.keys():
        require(
            method in owners[name] or method not in METHODS,
            f"{flag(name)} is a parameter of {', '.join(owners[name])}, not of {method}: leave it out",
        )
    return TrainConfig.create(**values)
