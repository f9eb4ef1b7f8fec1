"""Settings of eval_autoattack.py and its flags."""

from dataclasses import dataclass

from utils.options import COMPILE, PRECISIONS, CommonConfig, Parser, apply_num_classes, option, parse_epsilon, require

VERSIONS = ("standard", "dev", "plus", "rand", "custom")


def parse_epsilons(text: str) -> tuple[float, ...]:
    """``0,2/255,0.031`` -> the radii in ascending order, each once."""
    return tuple(sorted({parse_epsilon(part) for part in text.split(",") if part.strip()}))


def parse_batch_size(text: str) -> int:
    """A number of images, at least 1; or ``auto``, which is 0.

    Raises:
        UserError: neither.
    """
    if text == "auto":
        return 0
    require(text.isdecimal() and int(text) > 0, f"--batch-size {text}: write a number of images, at least 1, or auto")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(CommonConfig):
    """Settings of eval_autoattack.py."""

    checkpoint: str = option("", "weights to evaluate: ours, or a published file", aliases=("--model-path",))
    dataset: str = option("auto", "digits, cifar10, cifar100 or NAME of DATA_DIR/NAME.npz; auto asks the checkpoint")
    student: str = option("auto", "network, e.g. wrn-34-10; auto reads it off the checkpoint")
    version: str = option(
        "standard",
        "which suite: standard (the claim), dev (its apgd-ce and apgd-t alone: an upper bound in a third of the time), "
        "plus, rand (for randomized networks), or custom, which runs --attacks with 5 restarts of apgd-ce, apgd-dlr "
        "and fab instead of the standard's 1",
        choices=VERSIONS,
    )
    attacks: str = option("", "for --version custom, e.g. apgd-ce,apgd-t,fab-t,square")
    epsilons: tuple[float, ...] = option(
        (),
        "also attack at these radii, each on its own, for a curve over epsilon, e.g. 0,2/255,4/255,8/255,0.031,12/255",
        parse=parse_epsilons,
    )
    batch_size: int = option(
        250,
        "images a chunk, from which the random starts depend; auto takes the fastest that fits, measured in seconds",
        parse=parse_batch_size,
    )
    precision: str = option(
        "fp32", "arithmetic of the attacks; the verdict on what they find is always fp32's", choices=PRECISIONS
    )
    compile: str = option("auto", "torch.compile; auto compiles on CUDA only", choices=COMPILE)
    cross_checks: int = option(0, "check the first N images for gradient masking: pass or fail, with figures")
    save_adv: str = option("", "FILE.npz for the adversarial images, float32 within epsilon of the clean ones")
    export: tuple[str, ...] = option(
        (), "robustbench DIR: write there what the RobustBench model zoo asks for", nargs=2, metavar=("FORMAT", "DIR")
    )
    compare: tuple[str, ...] = option(
        (), "draw several finished evaluations (their autoattack.json) in one picture", nargs="+", metavar="JSON"
    )
    n_examples: int = option(0, "attack only the first N test images; 0 is all")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.cross_checks >= 0, f"--cross-checks {self.cross_checks} must be 0 (none) or more")
        require(self.n_examples >= 0, f"--n-examples {self.n_examples} must be 0 (all) or more")
        require(
            (self.version == "custom") == bool(self.attacks), "--attacks goes with --version custom, and only with it"
        )


def parse_eval(argv: list[str] | None = None) -> EvalConfig:
    """Command line -> EvalConfig.

    Raises:
        UserError: unknown flag or impossible value.
    """
    legacy = {
        "--widen_factor": {"type": int, "help": "K of wrn-34-K"},
        "--num_classes": {"type": int, "help": "10 or 100; without --dataset, chooses cifar10 or cifar100"},
        "--dataparallel": {"nargs": "?", "help": "ignored: the prefix module. is found out by itself"},
    }
    values = vars(Parser("Measure robustness with AutoAttack.", EvalConfig, legacy).parse_args(argv))
    values.pop("dataparallel", None)
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    if "widen_factor" in values:
        values.setdefault("student", f"wrn-34-{values.pop('widen_factor')}")
        values.pop("widen_factor", None)
    apply_num_classes(values)
    return EvalConfig(**values)
