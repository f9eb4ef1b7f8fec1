"""The files that the programs read, and how each is read. Used by ``benchmarks.faults``."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets import load_dataset
from datasets.extra import load_extra
from engine.config import TrainConfig
from engine.logger import Logger
from engine.train_state import Progress
from engine.trainer import Trainer
from evaluation.config import parse_eval
from evaluation.results import PerImageResults
from evaluation.run import Evaluation
from evaluation.summary import keep_earlier
from evaluation.target import load_network, warn_of_other_training
from report.compare import compare
from report.read import read_report
from utils.distributed import ProcessGroup

MARK, EPOCHS = "run", 2


def digest(value: Any) -> str:
    """SHA-256 of nested contents: the same for equal ones."""
    if isinstance(value, dict):
        text = "{" + ",".join(f"{key}:{digest(item)}" for key, item in sorted(value.items(), key=str)) + "}"
    elif isinstance(value, (list, tuple)):
        text = "[" + ",".join(map(digest, value)) + "]"
    elif isinstance(value, torch.Tensor):
        return digest(value.detach().cpu().numpy())
    elif isinstance(value, np.ndarray):
        text = f"{value.dtype}{value.shape}{hashlib.sha256(np.ascontiguousarray(value)).hexdigest()}"
    else:
        text = f"{type(value).__name__} {value!r}"
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


# -- a training and an evaluation of seconds ---------------------------------------------------------------------------


def train_config(folder: Path, **changes: Any) -> TrainConfig:
    settings = {
        "dataset": "digits", "student": "wrn-10-1", "guide": "wrn-10-1", "limit_train": 40, "val_size": 20,
        "batch_size": 16, "num_steps": 1, "epochs": EPOCHS, "eval_size": 8, "save_freq": 1, "device": "cpu",
        "mark": MARK, "average_every": "step", "decay_epochs": (2,), "log_dir": str(folder / "Logs"),
        "checkpoint_dir": str(folder / "checkpoints"),
    }  # fmt: skip
    return TrainConfig.create(**settings | changes)


def evaluation(folder: Path) -> Evaluation:
    argv = (
        f"--checkpoint {folder}/checkpoints/{MARK}/best.pt --version custom --attacks apgd-ce --n-examples 6 "
        f"--batch-size 3 --epsilon 0.02 --device cpu --mark eval --log-dir {folder}/Logs"
    ).split()
    return Evaluation(parse_eval(argv), argv, ProcessGroup())


def prepare(folder: Path) -> None:
    """Write one good file of every kind."""
    os.environ["MPLBACKEND"] = "Agg"
    Trainer(train_config(folder)).fit()
    digits = load_dataset("digits")
    arrays = {"x_train": digits.x_train[:40], "y_train": digits.y_train[:40], "x_test": digits.x_test[:20]}
    np.savez_compressed(
        folder / "mine.npz", **arrays, y_test=digits.y_test[:20], class_names=np.array(digits.class_names)
    )
    extra = {"image": digits.x_train[40:80], "label": digits.y_train[40:80]}
    np.savez(folder / "stored.npz", **extra)
    np.savez_compressed(folder / "packed.npz", **extra)
    for name in ("stored", "packed"):
        load_extra(folder / f"{name}.npz", 0.5, (16, 16, 3), 10)
    unpacked = next(folder.glob("packed-image-*.npy"))
    (folder / "unpacked").symlink_to(unpacked.name)
    evaluation(folder).run()
    state = folder / "Logs" / "eval" / "autoattack.state.npz"
    whole = PerImageResults.save
    saved = 0

    def stop_at_the_third(self: PerImageResults, path: Path, fingerprint: dict[str, Any]) -> None:
        nonlocal saved
        whole(self, path, fingerprint)
        saved += 1
        if saved == 3:
            raise KeyboardInterrupt

    PerImageResults.save = stop_at_the_third
    try:
        evaluation(folder).run()
    except KeyboardInterrupt:
        pass
    finally:
        PerImageResults.save = whole
    assert state.exists()


# -- the kinds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Attributes:
    path: of the file, in the prepared folder.
    read: what the program makes of it; the same for the same content.
    use: the rest of the program, with a file that was accepted although its content is another.
    form: ``torch``, ``npz``, ``json``, ``lines`` or ``raw``: how to write another content.
    """

    path: str
    read: Callable[[Path], Any]
    use: Callable[[Path], object]
    form: str


def read_last(folder: Path) -> Any:
    trainer = Trainer(train_config(folder, epochs=EPOCHS + 1))
    parts = trainer.student, trainer.guide, trainer.objective, trainer.average
    progress = vars(trainer.progress)
    return [part.state_dict() for part in parts if part], trainer.optimizer.state_dict()["state"], progress


def read_network(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        config = parse_eval(["--checkpoint", str(folder / "checkpoints" / MARK / name), "--dataset", "digits"])
        loaded = load_network(config)
        warn_of_other_training(loaded, config)
        return loaded.name, loaded.model.state_dict(), loaded.run if name == "best.pt" else None

    return read


def use_network(folder: Path) -> None:
    evaluation(folder).run()


def read_data(folder: Path) -> Any:
    data = load_dataset("mine", folder)
    return data.x_train, data.y_train, data.x_test, data.y_test, data.class_names


def read_extra(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        extra = load_extra(folder / f"{name}.npz", 0.5, (16, 16, 3), 10)
        return np.asarray(extra.images), np.asarray(extra.labels)

    return read


def read_state(folder: Path) -> Any:
    run = evaluation(folder)
    run.load()
    found = run.resume()
    fields = {name: value for name, value in vars(run.results).items()}
    return found, fields


def read_json(folder: Path) -> Any:
    return read_report(folder / "Logs" / "eval" / "autoattack.json")


def use_json(folder: Path) -> None:
    compare([str(folder / "Logs" / "eval")], folder / "Logs")


def read_lines(folder: Path) -> Any:
    with Logger(train_config(folder), Progress(epoch=EPOCHS + 1)) as log:
        return log.metrics


def use_lines(folder: Path) -> None:
    with Logger(train_config(folder), Progress(epoch=EPOCHS + 1)) as log:
        log.plot(final=True)


def read_earlier(folder: Path) -> Any:
    """Nothing but whether it is kept: the report of another evaluation is moved, that of the same replaced."""
    logs = folder / "Logs" / "eval"
    keep_earlier(logs, {"seed": 12345})
    assert list(logs.glob("earlier-*/autoattack.json"))
    return "kept"


def nothing(folder: Path) -> None:
    pass


CHECKPOINTS, LOGS = f"checkpoints/{MARK}", "Logs"
KINDS = {
    "last.pt, resumed": Kind(f"{CHECKPOINTS}/last.pt", read_last,
                             lambda folder: Trainer(train_config(folder, epochs=EPOCHS + 1)).fit(), "torch"),
    "best.pt, evaluated": Kind(f"{CHECKPOINTS}/best.pt", read_network("best.pt"), use_network, "torch"),
    "student-epoch002.pt, evaluated": Kind(
        f"{CHECKPOINTS}/student-epoch002.pt", read_network("student-epoch002.pt"), nothing, "torch"
    ),
    "NAME.npz": Kind("mine.npz", read_data, nothing, "npz"),
    "extra data, stored": Kind("stored.npz", read_extra("stored"), nothing, "npz"),
    "extra data, compressed": Kind("packed.npz", read_extra("packed"), nothing, "npz"),
    "extra data, unpacked .npy": Kind("unpacked", read_extra("packed"), nothing, "raw"),
    "extra data, .checked": Kind("stored.npz.checked", read_extra("stored"), nothing, "raw"),
    "evaluation state": Kind(f"{LOGS}/eval/autoattack.state.npz", read_state,
                             lambda folder: evaluation(folder).run(), "npz"),
    "autoattack.json, compared": Kind(f"{LOGS}/eval/autoattack.json", read_json, use_json, "json"),
    "metrics.jsonl, resumed": Kind(f"{LOGS}/{MARK}/metrics.jsonl", read_lines, use_lines, "lines"),
    "earlier autoattack.json": Kind(f"{LOGS}/eval/autoattack.json", read_earlier, nothing, "json"),
}  # fmt: skip
