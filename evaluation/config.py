"""Settings of eval_autoattack.py and its flags."""

import dataclasses
from dataclasses import dataclass

from models.normalize import parse_normalization
from utils.options import (
    COMPILE,
    PRECISIONS,
    CommonConfig,
    Parser,
    apply_num_classes,
    check_range,
    option,
    parse_epsilon,
    require,
)

EXAMPLES = """
examples:
  python eval_autoattack.py --checkpoint checkpoints/MARK/last.pt
  python eval_autoattack.py --checkpoint FILE --dataset cifar10 --epsilon 8/255 --n-examples 1000
  python eval_autoattack.py --checkpoint FILE --dataset cifar10 --student my_net.py:MyNet --normalize cifar10
  python eval_autoattack.py --compare Logs/A Logs/B
"""
VERSIONS = ("standard", "dev", "plus", "rand", "custom")


def split_list(text: str) -> tuple[str, ...]:
    """``0, 2/255`` -> its parts."""
    return tuple(part for part in text.split(",") if part.strip())


@dataclass(frozen=True, kw_only=True)
class EvalConfig(CommonConfig):
    """Settings of eval_autoattack.py."""

    checkpoint: str = option(
        "", "weights to evaluate: ours, or a published file", "evaluation", aliases=("--model-path",)
    )
    dataset: str = option(
        "auto", "digits, cifar10, cifar100 or NAME of DATA_DIR/NAME.npz; auto is the checkpoint's", "data"
    )
    student: str = option(
        "auto",
        "network, e.g. wrn-34-10, or yours: FILE.py:NAME, which is run and called with num_classes; auto is the "
        "checkpoint's",
        "evaluation",
    )
    normalize: str = option(
        "auto",
        "mean and std inside the network: none, cifar10, cifar100 or M,M,M/S,S,S; auto is what the checkpoint holds",
        "evaluation",
    )
    version: str = option(
        "standard",
        "which suite: standard, dev (its apgd-ce and apgd-t alone: an upper bound in a fifth to a third of the time), "
        "plus, rand (for randomized networks), or custom, which runs --attacks with 5 restarts of apgd-ce, apgd-dlr "
        "and fab instead of the standard's 1",
        "attack",
        choices=VERSIONS,
    )
    attacks: str = option("", "for --version custom, e.g. apgd-ce,apgd-t,fab-t,square", "attack")
    epsilons: tuple[float, ...] = option(
        (),
        "attack at these radii as well, each on its own, for a curve over epsilon, e.g. 0,2/255,4/255,8/255,0.031",
        "attack",
        parse=split_list,
    )
    batch_size: int = option(250, "images a chunk; the random starts depend on it", "attack", at_least=1)
    precision: str = option(
        "fp32", "arithmetic of the attacks; what they find is always checked in fp32", choices=PRECISIONS
    )
    compile: str = option(
        "auto",
        "on: the attacks' queries through torch.compile; auto: on CUDA as graphs, of a network of yours compiled",
        choices=COMPILE,
    )
    plain: bool = option(False, "run the official front end on the untouched network: slower, for comparison", "attack")
    cross_checks: int = option(
        0, "check the first N images for gradient masking: pass or fail, with figures", "evaluation", at_least=0
    )
    save_adv: str = option(
        "", "FILE.npz for the adversarial images, float32 within epsilon of the clean ones", "output"
    )
    export: tuple[str, ...] = option(
        (),
        "robustbench DIR: write there what the RobustBench model zoo asks for; published DIR: the weights as the "
        "published auto_attack_eval.py loads them",
        "output",
        nargs=2,
        metavar=("FORMAT", "DIR"),
    )
    compare: tuple[str, ...] = option(
        (),
        "plot several finished evaluations (their autoattack.json) in one picture",
        "output",
        nargs="+",
        metavar="JSON",
    )
    n_examples: int = option(0, "attack only the first N test images; 0 is all", "data", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        radii = sorted({parse_epsilon(epsilon, norm=self.norm) for epsilon in self.epsilons})
        object.__setattr__(self, "epsilons", tuple(radii))
        if self.normalize != "auto":
            parse_normalization(self.normalize)
        for f in dataclasses.fields(self):
            check_range(f, getattr(self, f.name))
        require(
            not self.plain or (self.precision, self.compile) in (("fp32", "auto"), ("fp32", "off")),
            "--plain is fp32 without torch.compile: leave out --precision and --compile",
        )
        require(
            (self.version == "custom") == bool(self.attacks),
            "--attacks goes with --version custom, and only with it, such as --attacks apgd-ce,apgd-t",
        )


def parse_eval(argv: list[str] | None = None) -> EvalConfig:
    """Command line -> EvalConfig.

    Raises:
        UserError: unknown flag or impossible value.
    """
    legacy = {
        "--widen_factor": {"type": int, "help": "K of wrn-34-K"},
        "--num_classes": {"type": int, "help": "10 or 100; without --dataset, chooses cifar10 or cifar100"},
        "--dataparallel": {"nargs": "?", "help": "ignored: the prefix module. is recognised"},
    }
    values = vars(Parser("Measure robustness with AutoAttack.", EvalConfig, legacy, EXAMPLES).parse_args(argv))
    values.pop("dataparallel", None)
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    if "widen_factor" in values:
        values.setdefault("student", f"wrn-34-{values.pop('widen_factor')}")
    apply_num_classes(values)
    return EvalConfig(**values)
