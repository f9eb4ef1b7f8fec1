"""Settings of train_lbgat.py and its flags."""

import dataclasses
import inspect
import math
from dataclasses import dataclass

from losses import METHODS
from utils.errors import UserError
from utils.options import (
    COMPILE,
    PRECISIONS,
    CommonConfig,
    _apply_num_classes,
    _parser,
    flag,
    option,
    parse_epsilon,
    require,
)

GUIDE_ALIASES = {"ResNet18_cifar": "resnet18-guide"}
SCHEDULES = ("multistep", "cosine", "onecycle")
RAMPS = ("none", "linear")
AVERAGES = ("none", "epoch", "step")


def parse_step_size(text: str | float) -> float:
    return parse_epsilon(text, "step size")


def parse_model(text: str) -> str:
    return GUIDE_ALIASES.get(text, text)


def parse_epochs(text: str) -> tuple[int, ...]:
    """``76,91`` -> (76, 91); an empty string is no epoch at all."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"{text!r} is not a list of epochs: write 76,91") from error


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CommonConfig):
    """Settings of train_lbgat.py; the defaults are the published recipe LBGAT6 (Cui et al. 2021)."""

    method: str = option("lbgat", "training method")
    dataset: str = option("digits", "digits, cifar10, cifar100, or NAME for which DATA_DIR/NAME.npz exists")
    student: str = option("wrn-34-10", "network to make robust, e.g. wrn-34-10, resnet18, preactresnet18")
    guide: str = option(
        "resnet18-guide",
        "natural classifier that guides LBGAT; other methods have none",
        parse=parse_model,
        aliases=("-teacher_model",),
    )
    beta: float = option(
        6.0,
        "weight of the KL term (the papers' alpha): 0 is LBGAT0, 6 is LBGAT6, TRADES6 and MART6; "
        "of the wMSE in DKL, IKL and GKL: 20 in IKL-AT and GKL-AT (Cui et al. 2024)",
    )
    alpha: float = option(4.0, "weight of CE(p(x), p(x')) in DKL, IKL and GKL: 4, also 5 (Cui et al. 2024)")
    gamma: float = option(0.4, "exponent of GKL's class prior: 0.4 on CIFAR-100, 0.2 on CIFAR-10 (Cui et al. 2025)")
    temperature: float = option(4.0, "of the class prior: 4, also 2, in IKL (Cui et al. 2024), 1 in GKL")
    attack_beta: float = option(1.0, "weight of the wMSE in the attack of IKL and GKL: 1 on CIFAR-100, 0 on CIFAR-10")
    label_smoothing: float = option(0.0, "of the cross-entropies with y that training minimises")
    epochs: int = option(100, "passes over the training set")
    batch_size: int = option(128, "images a step")
    lr: float = option(0.1, "learning rate of SGD; onecycle's highest")
    schedule: str = option(
        "multistep",
        "of the learning rate: multistep; cosine, 0.5 (1 + cos(pi e / (E + 1))) in epoch e of E (IKL-AT); onecycle, "
        "from 0 to --lr at 2/5 of the run and back to 0, step by step (Wong et al. 2020)",
        choices=SCHEDULES,
    )
    warmup_factor: float = option(0.2, "multistep: multiplies the learning rate in epoch 1; 1 is no warm-up")
    decay_epochs: tuple[int, ...] = option(
        (76, 91),
        "multistep: epochs from which the learning rate is divided by 10 once more, e.g. 76,91",
        parse=parse_epochs,
    )
    momentum: float = option(0.9, "of SGD")
    weight_decay: float = option(2e-4, "of SGD", aliases=("--wd",))
    step_size: float = option(0.007, "of the training attack, in [0, 1] like epsilon", parse=parse_step_size)
    step_ratio: float = option(0.0, "if above 0, the step is this part of the epoch's epsilon: 0.5 in IKL-AT")
    num_steps: int = option(10, "steps of the training attack")
    epsilon_ramp: str = option(
        "none", "linear trains with epsilon e / E in epoch e of E (IKL-AT); evaluation keeps epsilon", choices=RAMPS
    )
    awp_gamma: float = option(
        0.0,
        "size of the adversarial weight perturbation of the student (the guide is not perturbed), relative to each "
        "weight's norm: 0.005 in TRADES-AWP, 0.01 in AT-AWP (Wu et al. 2020); 0 is none",
    )
    awp_start_epoch: int = option(1, "first epoch with weight perturbation: 10 in TRADES-AWP and IKL-AT")
    average_every: str = option(
        "none", "keep an average of the student's weights, taken each epoch (IKL-AT) or step", choices=AVERAGES
    )
    average_tau: float = option(0.9, "average = tau average + (1 - tau) weights: 0.9 each epoch in IKL-AT")
    precision: str = option("fp32", "arithmetic of the forward passes", choices=PRECISIONS)
    compile: str = option("auto", "torch.compile; auto compiles on CUDA only", choices=COMPILE)
    augment: str = option("none", "after crop and flip: none, autoaugment[-POLICY], randaugment or cutout")
    augment_view_weight: float = option(
        0.0, "weight of the loss on a second, augmented view of each image; 0 augments the only view"
    )
    extra_data: str = option("", "npz file of further images (image: uint8 NHWC, label), mixed into every batch")
    extra_fraction: float = option(0.0, "of every batch that comes from --extra-data, in [0, 1)")
    limit_train: int = option(0, "use only the first N training images; 0 is all")
    val_size: int = option(0, "hold out N training images to choose the best checkpoint; 0 chooses on the test set")
    eval_size: int = option(1000, "images on which PGD-20 measures robust accuracy after each epoch")
    patience: int = option(
        0, "stop after N epochs without better robust accuracy on --val-size images (Rice et al. 2020); 0 never"
    )
    save_freq: int = option(10, "write student-epochNNN.pt every N epochs, and after the last", aliases=("-s",))
    log_interval: int = option(50, "steps between checks of the loss and updates of the progress bar")
    max_minutes: float = option(0.0, "stop after this many minutes, ready for --resume auto; 0 is no limit")
    resume: str = option("auto", "auto goes on with the mark's last.pt if there is one; none starts afresh; or a PATH")
    checkpoint_dir: str = option("checkpoints", "checkpoints go to CHECKPOINT_DIR/MARK", aliases=("--model-dir",))

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "step_size", parse_step_size(self.step_size))
        for name in (
            "epochs", "batch_size", "num_steps", "eval_size", "save_freq", "log_interval", "awp_start_epoch"
        ):  # fmt: skip
            require(getattr(self, name) >= 1, f"{flag(name)} {getattr(self, name)} must be at least 1")
        for name in (
            "beta", "alpha", "gamma", "attack_beta", "weight_decay", "limit_train", "val_size", "max_minutes",
            "augment_view_weight", "awp_gamma", "step_ratio", "patience",
        ):  # fmt: skip
            require(0 <= getattr(self, name) < math.inf, f"{flag(name)} {getattr(self, name)} must be 0 or more")
        for name in ("lr", "step_size", "warmup_factor", "temperature"):
            require(0 < getattr(self, name) < math.inf, f"{flag(name)} {getattr(self, name)} must be above 0")
        require(
            all(epoch >= 1 for epoch in self.decay_epochs), f"--decay-epochs {self.decay_epochs}: epochs start at 1"
        )
        require(0 <= self.extra_fraction < 1, f"--extra-fraction {self.extra_fraction} must be in [0, 1)")
        require(
            bool(self.extra_data) == (self.extra_fraction > 0),
            "--extra-data FILE and --extra-fraction above 0 go together: pass both or neither",
        )
        require(
            self.augment_view_weight == 0 or self.augment != "none",
            f"--augment-view-weight {self.augment_view_weight} needs an --augment for the second view",
        )
        for name in ("momentum", "label_smoothing", "average_tau"):
            require(0 <= getattr(self, name) < 1, f"{flag(name)} {getattr(self, name)} must be in [0, 1)")
        for f in dataclasses.fields(self):
            choices = f.metadata.get("choices")
            require(
                choices is None or getattr(self, f.name) in choices,
                f"{flag(f.name)} {getattr(self, f.name)}: choose {' or '.join(choices or ())}",
            )
        require(
            self.patience == 0 or self.val_size > 0,
            f"--patience {self.patience} needs held-out images to judge by: add --val-size N",
        )

    @property
    def run_name(self) -> str:
        """``lbgat0-cifar100-wrn34-10``: the mark, or a name made from method, data set and student."""
        parameters = {
            "lbgat": f"{self.beta:g}",
            "trades": f"{self.beta:g}",
            "mart": f"{self.beta:g}",
            "dkl": f"-a{self.alpha:g}b{self.beta:g}",
            "ikl": f"-a{self.alpha:g}b{self.beta:g}t{self.temperature:g}",
            "gkl": f"-a{self.alpha:g}b{self.beta:g}g{self.gamma:g}t{self.temperature:g}",
        }
        method = self.method + parameters.get(self.method, "") + ("-awp" if self.awp_gamma else "")
        return self.mark or f"{method}-{self.dataset}-{self.student.replace('wrn-', 'wrn')}"


def _methods() -> str:
    """Every method with what it minimises, its own flags and its source, from the registry."""
    flags = {f.name for f in dataclasses.fields(TrainConfig)}
    text = "methods (--method), what training minimises, their own flags, and their source:\n"
    for name, method in METHODS.items():
        own = [flag(p) for p in inspect.signature(method).parameters if p in flags]
        summary = inspect.getdoc(method).splitlines()[0]
        text += f"\n  {name}\n    {summary}\n    {' '.join(own)}\n    {method.source}\n"
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
    parser = _parser("Train a robust student with its guide.", TrainConfig, legacy, _methods())
    values = vars(parser.parse_args(argv))
    if values.pop("no_cuda", False):
        values["device"] = "cpu"
    _apply_num_classes(values)
    return TrainConfig(**values)
