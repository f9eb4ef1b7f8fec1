"""What an evaluation is about: the network in a checkpoint, and the test images that belong to it."""

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from datasets import Dataset, load_dataset
from evaluation.config import EvalConfig
from models import RESNETS, create_model
from models.weights import infer_architecture, load_file, load_strictly, student_state
from utils.errors import UserError
from utils.options import format_epsilon

NUM_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class LoadedModel:
    """The network under test, its name, and the data set of the run that it comes from (None if unknown).

    ``run`` holds all settings of that run, by their names in ``TrainConfig``; of a published file it is empty.
    """

    model: nn.Module
    name: str
    num_classes: int
    dataset: str | None
    run: dict[str, Any]


def load_network(config: EvalConfig) -> LoadedModel:
    """Raises: UserError: no such file, not a checkpoint, or not of the network asked for."""
    path = config.checkpoint
    if not path:
        raise UserError("nothing to evaluate: pass --checkpoint FILE, e.g. checkpoints/MARK/last.pt")
    content = load_file(path)
    state = student_state(content, path)
    run = content.get("config") if isinstance(content.get("config"), dict) else {}
    inferred, num_classes = infer_architecture(state)
    name = run.get("student") or inferred if config.student == "auto" else config.student
    if name is None:
        raise UserError(f"{path} does not tell its network: pass --student, e.g. {', '.join(RESNETS)} or wrn-34-10")
    model = create_model(name, num_classes or 10)  # without a known head the strict loading below says what is wrong
    load_strictly(model, state, path)
    return LoadedModel(model, name, num_classes, run.get("dataset"), run)


def load_data(config: EvalConfig, subject: LoadedModel) -> Dataset:
    """The data set, its test split cut to the images to attack.

    Raises:
        UserError: no such data, no way to tell which, or another number of classes than the network's.
    """
    name = config.dataset if config.dataset != "auto" else subject.dataset
    if name is None:
        if subject.num_classes != 100:
            raise UserError(
                f"{config.checkpoint} does not tell its data set of {subject.num_classes} classes: "
                "pass --dataset, e.g. cifar10 or digits"
            )
        name = "cifar100"
    _check_classes(config, subject, name, NUM_CLASSES.get(name, subject.num_classes))  # before it is downloaded
    data = load_dataset(name, config.data_dir)
    _check_classes(config, subject, name, data.num_classes)
    attacked = slice(config.n_examples or None)
    return replace(data, x_test=data.x_test[attacked], y_test=data.y_test[attacked])


def _check_classes(config: EvalConfig, subject: LoadedModel, name: str, num_classes: int) -> None:
    if num_classes != subject.num_classes:
        raise UserError(
            f"{config.checkpoint} is of {subject.num_classes} classes and data set {name!r} has {num_classes}: "
            "pass the --dataset that it was trained on"
        )


def run_name(config: EvalConfig) -> str:
    """The mark, or the training run's for one of its checkpoints (folder MARK), or the file's name."""
    path = Path(config.checkpoint).resolve()
    ours = re.fullmatch(r"last|best|(student|average)-epoch\d+", path.stem)
    return config.mark or re.sub(r"[^\w.+-]", "-", path.parent.name if ours else path.stem)


def warn_of_other_training(subject: LoadedModel, config: EvalConfig) -> None:
    """One line where the network was made robust in another ball than the one in which it is attacked."""
    if subject.run.get("method") == "natural" or not {"norm", "epsilon"} <= subject.run.keys():
        return
    trained = f"epsilon {format_epsilon(subject.run['epsilon'])} in {subject.run['norm']}"
    attacked = f"epsilon {format_epsilon(config.epsilon)} in {config.norm}"
    if trained != attacked:
        print(f"notice: the network was trained at {trained} and is attacked at {attacked}", file=sys.stderr)
