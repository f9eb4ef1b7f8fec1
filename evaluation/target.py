"""The target of an evaluation: the network in a checkpoint, and the test images of its data set."""

import hashlib
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from datasets import Dataset, load_dataset
from evaluation.autoattack.suite import needs_gradient
from evaluation.config import EvalConfig
from models import checkpoint
from models.custom import check_outputs, is_custom, source_hashes
from models.weights import load_file, read_file
from utils.errors import UserError
from utils.options import format_epsilon

NUM_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class LoadedModel:
    """The network under test.

    Attributes:
        name: of the network, e.g. ``wrn-34-10``.
        dataset: of the training run; None if unknown.
        run: the settings of the training run, by their names in ``TrainConfig``; empty for a published file.
        sha256: of the bytes from which the network was loaded, hexadecimal.
        normalize: mean and std inside the network, as ``--normalize`` takes them; ``none`` if there are none.
        source_sha256: of the source file of a user's network; empty for the networks here.
        notes: what was chosen in the file, a phrase each.
    """

    model: nn.Module
    name: str
    num_classes: int
    dataset: str | None
    run: dict[str, Any]
    sha256: str = ""
    normalize: str = "none"
    source_sha256: str = ""
    notes: tuple[str, ...] = ()


def load_network(config: EvalConfig) -> LoadedModel:
    """Read the checkpoint once, so that the hash is of the network that is attacked.

    Raises:
        UserError: no such file, not a checkpoint, or not of the network asked for.
    """
    path = config.checkpoint
    if not path:
        raise UserError("nothing to evaluate: pass --checkpoint FILE, e.g. checkpoints/MARK/last.pt")
    data = read_file(path)
    content = load_file(path, content=data)
    run = content["config"] if isinstance(content, dict) and isinstance(content.get("config"), dict) else {}
    for key, kind in {"student": str, "dataset": str, "epsilon": (int, float)}.items():
        if key in run and not (isinstance(run[key], kind) and (kind is str or 0 <= run[key] <= 1e9)):
            raise UserError(f"{path} is damaged: its configuration says {key} {run[key]!r:.40}; copy it again")
    dataset = run.get("dataset") if config.dataset == "auto" else config.dataset
    num_classes = NUM_CLASSES.get(dataset)
    if num_classes is None and is_custom(config.student) and dataset is not None:
        num_classes = load_dataset(dataset, config.data_dir).num_classes
    network = checkpoint.load_network(content, path, config.student, config.normalize, num_classes)
    return LoadedModel(
        model=network.model,
        name=network.name,
        num_classes=network.num_classes,
        dataset=run.get("dataset"),
        run=run,
        sha256=hashlib.sha256(data).hexdigest(),
        normalize=network.normalize,
        source_sha256="".join(source_hashes(network.name).values()),
        notes=network.notes,
    )


def check_network(loaded: LoadedModel, data: Dataset, attacks: tuple[str, ...]) -> None:
    """Check that a user's network takes the images and returns logits of the classes, as the attacks need them.

    Raises:
        UserError: it does not.
    """
    if is_custom(loaded.name):
        check_outputs(
            loaded.name, loaded.model.eval(), data.test(2)[0], data.num_classes, gradient=needs_gradient(attacks)
        )


def load_data(config: EvalConfig, loaded: LoadedModel, warn: bool = False) -> Dataset:
    """Return the data set, its test split cut to the images to attack.

    Args:
        warn: print a line if the first images are of few classes.

    Raises:
        UserError: no such data, no way to tell which, or another number of classes than the network's.
    """
    name = config.dataset if config.dataset != "auto" else loaded.dataset
    if name is None:
        if loaded.num_classes != 100:
            raise UserError(
                f"{config.checkpoint} does not tell its data set of {loaded.num_classes} classes: "
                "pass --dataset, e.g. cifar10 or digits"
            )
        name = "cifar100"
    _check_classes(config, loaded, name, NUM_CLASSES.get(name, loaded.num_classes))  # before it is downloaded
    data = load_dataset(name, config.data_dir)
    _check_classes(config, loaded, name, data.num_classes)
    if warn and config.n_examples and (notice := data.order_notice("test")):
        print(f"notice: {notice}", file=sys.stderr)
    attacked = slice(config.n_examples or None)
    return replace(data, x_test=data.x_test[attacked], y_test=data.y_test[attacked])


def _check_classes(config: EvalConfig, loaded: LoadedModel, name: str, num_classes: int) -> None:
    if num_classes != loaded.num_classes:
        raise UserError(
            f"{config.checkpoint} is of {loaded.num_classes} classes and data set {name!r} has {num_classes}: "
            "pass the --dataset that it was trained on"
        )


def run_name(config: EvalConfig) -> str:
    """Return the mark, or the training run's for one of its checkpoints (folder MARK), or the file's name."""
    path = Path(os.path.realpath(config.checkpoint))  # which a loop of links does not stop
    ours = re.fullmatch(r"last|best|(student|average)-epoch\d+", path.stem)
    return config.mark or re.sub(r"[^\w.+-]", "-", path.parent.name if ours else path.stem)


def warn_of_other_training(loaded: LoadedModel, config: EvalConfig) -> None:
    """Print one line if the network was trained at another epsilon or norm than it is attacked at."""
    if loaded.run.get("method") == "natural" or not {"norm", "epsilon"} <= loaded.run.keys():
        return
    trained = f"epsilon {format_epsilon(loaded.run['epsilon'])} in {loaded.run['norm']}"
    attacked = f"epsilon {format_epsilon(config.epsilon)} in {config.norm}"
    if trained != attacked:
        print(f"notice: the network was trained at {trained} and is attacked at {attacked}", file=sys.stderr)
