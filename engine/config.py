"""Settings of train_lbgat.py."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from losses import METHODS, find_method
from models import canonical_name
from models.custom import short_name, source_hashes
from models.normalize import parse_normalization
from utils.options import (
    COMPILE,
    LARGEST_INTEGER,
    PRECISIONS,
    CommonConfig,
    check_range,
    option,
    parse_epochs,
    parse_epsilon,
    parse_factors,
    require,
)  # fmt: skip

GUIDE_ALIASES = {"ResNet18_cifar": "resnet18-guide"}
SCHEDULES = (
    "multistep", "piecewise", "cosine", "cosine-from-lr", "onecycle", "cyclic", "onecycle-epochs", "onecycle-updates",
)  # fmt: skip
RAMPS, AVERAGES, PADDINGS = ("none", "linear"), ("none", "epoch", "step"), ("zero", "reflect")
BATCH_NORMS, MOST_DECAYS = ("synchronised", "local"), 20


def parse_model(text: str) -> str:
    return GUIDE_ALIASES.get(text) or canonical_name(text)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CommonConfig):
    """Settings of train_lbgat.py; the defaults are the published recipe LBGAT6 (Cui et al. 2021).

    ``parameters`` are the method's own hyper-parameters by name; ``create`` takes them among the other settings.

    Raises:
        UserError: an unknown method, or a value outside of its range.
    """

    dataset: str = option("digits", "digits, cifar10, cifar100, or NAME for which DATA_DIR/NAME.npz exists", "data")
    batch_size: int = option(128, "images a step, of all processes together", "data", at_least=1)
    augment: str = option("none", "after crop, flip: none, autoaugment[-POLICY], randaugment, cutout, rotation", "data")
    crop_padding: str = option(
        "zero", "what the random crop sees beyond the border; reflect in Rice et al. 2020", "data", choices=PADDINGS
    )
    augment_view_weight: float = option(
        0.0,
        "weight of the loss on a second, augmented view of each image; 0 augments the only view",
        "data",
        at_least=0,
    )
    extra_data: str = option("", "npz file of more images (image: uint8 NHWC, label), mixed into every batch", "data")
    extra_fraction: float = option(
        0.0, "part of every batch that comes from --extra-data, to the nearest image", "data", at_least=0, below=1
    )
    limit_train: int = option(0, "train on N images only, beside those held out; 0 is all", "data", at_least=0)
    val_size: int = option(
        0, "hold out N training images to choose the best checkpoint; 0 chooses on the test set", "data", at_least=0
    )

    method: str = option("lbgat", f"training method, described below\nchoices: {', '.join(METHODS)}", "method")
    parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    student: str = option(
        "wrn-34-10",
        "network to make robust: wrn-D-K[-swish], resnet18, preactresnet18[-yopo], resnet50; or yours: FILE.py:NAME or "
        "MODULE:NAME, which is run and called with num_classes",
        "method",
        parse=parse_model,
    )
    guide: str = option(
        "resnet18-guide",
        "natural classifier that guides LBGAT (HAT: helps): resnet18-guide or any network, also yours",
        "method",
        parse=parse_model,
        aliases=("-teacher_model",),
    )
    guide_checkpoint: str = option(
        "", "weights of a frozen guide (of hat and lbgat-frozen): the FILE of a --method natural run", "method"
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
        "learning rate: multistep; piecewise, the same one update earlier (Rice et al. 2020); cosine, 0.5 (1 + cos(pi "
        "e / (E + 1))) in epoch e of E (IKL-AT); cosine-from-lr, with (e - 1) / E (DAJAT); onecycle, from 0 to --lr at "
        "2/5 of the run and back to 0, step by step; cyclic, from 0 to --lr in the middle and back, while the momentum "
        "falls by 0.1 and rises (Fast and Free AT); onecycle-epochs and onecycle-updates, PyTorch's OneCycleLR with "
        "the momentum from 0.95 to 0.85 and back (WA-TRADES, HAT)",
        "optimisation",
        choices=SCHEDULES,
    )
    warmup_factor: float = option(
        0.2, "multistep: multiplies the learning rate in epoch 1; 1 is no warm-up", "optimisation", above=0
    )
    decay_epochs: tuple[int, ...] = option(
        (76, 91),
        "multistep, piecewise: epochs from which the learning rate is divided by 10 once more, e.g. 76,91; or parts of "
        "the run, e.g. 3/4,9/10",
        "optimisation",
        parse=parse_epochs,
    )
    decay_factors: tuple[float, ...] = option(
        (),
        "what the learning rate is multiplied by at each of --decay-epochs; 0.1 each if empty (FAT: 0.1,0.1,0.5)",
        "optimisation",
        parse=parse_factors,
    )
    onecycle_up: float = option(
        0.25,
        "onecycle-epochs, onecycle-updates: the part of the run in which the learning rate rises",
        "optimisation",
        above=0,
        below=1,
    )
    momentum: float = option(0.9, "momentum of SGD", "optimisation", at_least=0, below=1)
    nesterov: bool = option(False, "Nesterov momentum", "optimisation")
    weight_decay: float = option(2e-4, "weight decay of SGD", "optimisation", aliases=("--wd",), at_least=0)
    no_norm_decay: bool = option(False, "no weight decay of BatchNorm's weights and biases", "optimisation")
    accumulate: int = option(
        1,
        "run each batch in N parts, one after the other, to need less memory; each has its own BatchNorm statistics",
        "optimisation",
        at_least=1,
    )
    batch_norm: str = option(
        "synchronised",
        "of several processes, statistics of the whole batch (synchronised), or of each process's rows, where running "
        "statistics are process 0's (local, as DataParallel's)",
        "optimisation",
        choices=BATCH_NORMS,
    )
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
    average_warmup: float = option(
        0.0,
        "part of the run in which the average is the student itself: 0.025 in WA-TRADES, 0.75 in DAJAT",
        "averaging",
        at_least=0,
        below=1,
    )
    average_ramp: bool = option(
        False, "k updates after the warm-up tau is at most (1+k)/(10+k), as in WA-TRADES", "averaging"
    )

    stop_overfitting: bool = option(
        False,
        "stop when PGD-5 accuracy on the epoch's first training batch is 20 points below that of the epoch before: "
        "catastrophic overfitting (Wong et al. 2020); needs --save-freq 1, which keeps the weights before it",
        "evaluation",
    )
    eval_size: int = option(1000, "images on which PGD-20 measures accuracy after each epoch", "evaluation", at_least=1)
    patience: int = option(
        0,
        "stop after N epochs without better robust accuracy on --val-size images (Rice et al. 2020); 0 never",
        "evaluation",
        at_least=0,
    )

    deterministic: bool = option(
        False, "the same weights bit for bit from run to run on CUDA too (a CPU gives them anyway), at a price in speed"
    )
    save_freq: int = option(10, "write student-epochNNN.pt every N epochs and at the end", aliases=("-s",), at_least=1)
    log_interval: int = option(50, "steps between checks of the loss and updates of the progress bar", at_least=1)
    tensorboard: bool = option(False, "scalars, adversarial images and hyper-parameters in LOG_DIR/MARK/tensorboard")
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
        whole = float if self.schedule == "piecewise" else int
        decays = [
            whole(min(d * self.epochs, LARGEST_INTEGER)) + 1 if isinstance(d, Fraction) else d
            for d in self.decay_epochs
        ]
        require(
            all(1 <= decay <= LARGEST_INTEGER for decay in decays) and len(decays) <= MOST_DECAYS,
            f"--decay-epochs {','.join(map(str, self.decay_epochs))[:40]}: at most {MOST_DECAYS} epochs, from 1 on",
        )
        set_("decay_epochs", tuple(decays))
        require(
            len(self.decay_factors) in (0, len(decays)) and all(0 < factor < math.inf for factor in self.decay_factors),
            f"--decay-factors {','.join(map(str, self.decay_factors))[:40]}: one above 0 for each of --decay-epochs",
        )
        require(
            self.average_every != "none" or not (self.average_warmup or self.average_ramp),
            "--average-warmup and --average-ramp need an average: add --average-every step or epoch",
        )
        require(
            not self.stop_overfitting or self.save_freq == 1,
            "--stop-overfitting needs the weights of the epoch before: add --save-freq 1",
        )
        require(
            bool(self.extra_data) == (self.extra_fraction > 0),
            "--extra-data FILE and --extra-fraction above 0 go together: pass both or neither",
        )
        require(
            self.augment_view_weight == 0 or self.augment != "none",
            f"--augment-view-weight {self.augment_view_weight} needs an --augment for the second view",
        )
        require(
            self.batch_size % self.accumulate == 0,
            f"--accumulate {self.accumulate} does not divide --batch-size {self.batch_size}: choose one that does",
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
        parameters = {name: values.pop(name) for name in list(values) if name not in known}
        return cls(**values, parameters=parameters)

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

    @property
    def log_folder(self) -> Path:
        return Path(self.log_dir) / self.run_name
