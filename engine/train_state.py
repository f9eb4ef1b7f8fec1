"""The state of a training run: its progress, and what is saved of it."""

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import resume
from engine.averaging import WeightAverage
from engine.config import TrainConfig
from engine.resume import FORMAT, damaged, momentum_buffers, optimizer_state
from engine.schedule import learning_rate
from engine.share import share_state
from engine.steps import STEPS, Step
from losses.base import Objective
from models.weights import load_strictly, plain_state
from utils.distributed import ProcessGroup
from utils.errors import UserError
from utils.files import identity, save_atomically, write_atomically
from utils.options import flag


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: the one in progress, from 1; step: how many of its steps are finished.
        sums: of the epoch in progress: each term, summed over its images.
        seconds: spent in the steps of the epoch in progress.
        train_robust: of each epoch, with --stop-overfitting: see ``engine.overfitting``.
        best: the metrics of the best epoch so far, and what it was chosen by and on; empty before the first.
    """

    epoch: int = 1
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    train_robust: list[float] = field(default_factory=list)

    @property
    def started(self) -> bool:
        return (self.epoch, self.step) != (1, 0)

    def add(self, terms: dict[str, Tensor], n: int) -> None:
        """Count a finished step, given the mean terms of its n images."""
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0) + term.double() * n
        self.step += 1

    def means(self, n: int) -> dict[str, float]:
        """Each term as the mean over the n images of the epoch."""
        return {name: value.item() / n for name, value in self.sums.items()}

    def next_epoch(self) -> None:
        self.epoch, self.step, self.sums, self.seconds = self.epoch + 1, 0, {}, 0.0


@dataclass
class Checkpoints:
    """Saves a run and resumes it.

    Attributes:
        data: fingerprint of the images and labels.
        latest: the last file that this run was saved to, or resumed from; None if there is none.
        replaced: files of an earlier run with this mark that are removed when this one is saved first.
        group: the processes that train together; only process 0 reads and writes files.
        saved_with: processes, CPU threads of each and the code that saved the resumed state; None if not known.
        best_file: best.pt beside the file that was resumed from.
        found: identity of the last.pt that was there at the start; None if there was none.
        code: hash of the files of the method and of its step.
    """

    config: TrainConfig
    data: str
    student: nn.Module
    guide: nn.Module | None
    objective: Objective
    optimizer: torch.optim.Optimizer
    step: Step
    average: WeightAverage | None
    progress: Progress
    latest: Path | None = None
    replaced: list[Path] = field(default_factory=list)
    group: ProcessGroup = field(default_factory=ProcessGroup)
    saved_with: dict[str, Any] | None = None
    found: tuple[int, ...] | None = None
    best_file: Path | None = None
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.code = resume.code_hash(type(self.objective), STEPS[self.objective.step])

    @property
    def folder(self) -> Path:
        return Path(self.config.checkpoint_dir) / self.config.run_name

    def begin(self) -> None:
        """Call with the folders locked, before training; the best epoch so far comes along from another folder.

        Raises:
            UserError: another training has written last.pt since this one has read it, or another run is in the way.
        """
        if not self.group.is_main:
            return
        if identity(self.folder / "last.pt") != self.found:
            raise UserError(f"another training has just written {self.folder}/last.pt: run the command again")
        resume.check_folders(self.folder, self.config.log_folder, self.config, self.progress.started)
        best = self.folder / "best.pt"
        if self.best_file is not None and self.best_file.exists() and self.best_file.resolve() != best.resolve():
            content = self.best_file.read_bytes()
            write_atomically(best, lambda file: file.write(content))

    def save_last(self) -> None:
        """Write last.pt, from which the run resumes exactly.

        Raises:
            UserError: the state is not finite, or the file cannot be written.
        """
        self.check_finite()
        self.saved_at = time.monotonic()
        step = self.step.state_dict()  # which processes may have to gather
        if not self.group.is_main:
            return
        self._remove_replaced()
        last = self.folder / "last.pt"
        state = {
            "format": FORMAT,
            "config": self.config.as_dict(),
            "data": self.data,
            "student": self.student.state_dict(),
            "guide": self.guide.state_dict() if self.guide is not None else None,
            "optimizer": optimizer_state(self.optimizer),
            "objective": self.objective.state_dict(),
            "step": step,
            "average": self.average.state_dict() if self.average else None,
            "epoch": self.progress.epoch,
            "steps_done": self.progress.step,
            "sums": self.progress.sums,
            "seconds": self.progress.seconds,
            "best": self.progress.best,
            "train_robust": self.progress.train_robust,
            **self._processes(),
        }
        save_atomically(state, last)
        self.latest, self.found = last, identity(last)

    def _processes(self) -> dict[str, Any]:
        return {"processes": self.group.size, "threads": torch.get_num_threads(), "code": self.code}

    def save_epoch(self, epoch: int, metrics: dict[str, Any], split: str) -> None:
        """Save after an epoch, whose progress is counted already: best.pt if it is the best, and last.pt.

        best.pt holds the averaged weights where there are any. The epochs of a method without an attack are
        compared by clean accuracy.

        Args:
            split: the images that the metrics were measured on: ``validation`` or ``test``.
        """
        if self.group.is_main:
            self._remove_replaced()
        which = "average" if self.average else "student"
        criterion = f"{which}_robust" if "adv" in self.objective.passes else f"{which}_clean"
        better = metrics[criterion] > self.progress.best.get(criterion, -1.0)
        if better:
            self.progress.best = {"epoch": epoch, "chosen_by": criterion, "chosen_on": split, **metrics}
        if self.group.is_main:
            self._save_weights(epoch, which if better else "")
        self.save_last()  # last: after a kill in between, the files before it are written again

    def _save_weights(self, epoch: int, best: str) -> None:
        """Save the weights of an epoch that is due, and in best.pt those that ``best`` names, student or average."""
        states = {"student": plain_state(self.student)}
        if self.average:
            states["average"] = plain_state(self.average.model)
        if best:
            weights = {"format": FORMAT, "config": self.config.as_dict(), "student": states[best]}
            save_atomically({**weights, "best": self.progress.best, **self._processes()}, self.folder / "best.pt")
        if epoch % self.config.save_freq == 0 or epoch == self.config.epochs:
            for name, state in states.items():
                save_atomically(state, self.folder / f"{name}-epoch{epoch:03d}.pt")

    def check_finite(self) -> None:
        """Refuse to evaluate or save a run that has diverged.

        Raises:
            UserError: a term, a weight, a momentum or an average is not finite.
        """
        self.check_loss()
        for name, tensors in self._tensors().items():
            if not all(torch.isfinite(t).all() for t in tensors):
                raise self._not_finite(name)

    def check_loss(self) -> None:
        """Raises: UserError: a term of the loss is not finite."""
        broken = [name for name, value in self.progress.sums.items() if not math.isfinite(value.item())]
        if broken:
            raise self._not_finite(f"the loss ({', '.join(broken)})")

    def _tensors(self) -> dict[str, list[Tensor]]:
        networks = {"student": self.student, "guide": self.guide, "average": self.average and self.average.model}
        named = {f"a weight of the {k}": _trained(net) for k, net in networks.items() if net}
        buffers = [state.get("momentum_buffer") for state in self.optimizer.state.values()]
        return named | {"the momentum of the optimizer": [b for b in buffers if b is not None]}

    def _not_finite(self, what: str) -> UserError:
        kept = f"{self.latest} is the last good state" if self.latest else "no state was saved yet"
        lr = self.optimizer.param_groups[0]["lr"]
        return UserError(
            f"{what} is no longer finite in epoch {self.progress.epoch}, step {self.progress.step}; {kept}: "
            f"try a lower --lr (now {lr:g}) or --precision fp32"
        )

    def _remove_replaced(self) -> None:
        for path in self.replaced:
            path.unlink(missing_ok=True)
        self.replaced = []

    def resume(self, device: torch.device, steps_per_epoch: int) -> None:
        """Resume from the file that the configuration names, if there is one; all processes get process 0's state.

        Raises:
            UserError: no such file, a damaged one, or one of another run; or processes with other settings or data.
        """
        mine = {**self.config.as_dict(), "images": self.data}
        for rank, theirs in enumerate(self.group.gather(mine)):
            differ = [flag(name) for name, value in json.loads(json.dumps(mine)).items() if theirs[name] != value]
            if differ:
                what = ", ".join(differ).replace("--images", "the images")
                raise UserError(f"process {rank} has other settings or data ({what}): give all processes the same")
        if self.group.is_main:
            self._resume(device, steps_per_epoch)
        if self.group.size > 1:
            share_state(self, self.group)

    def _resume(self, device: torch.device, steps_per_epoch: int) -> None:
        last, choice = self.folder / "last.pt", self.config.resume
        self.found = identity(last)
        if choice == "none":
            self.replaced = [path for name in resume.WEIGHTS for path in self.folder.glob(name)]
        if choice == "none" or (choice == "auto" and not last.exists() and not last.is_symlink()):
            return
        path = last if choice == "auto" else Path(choice)
        state = resume.load_training_state(path, self.config, self.data, device)
        elsewhere = os.path.realpath(path) != os.path.realpath(last)  # also of links that lead nowhere
        if elsewhere and last.exists():
            raise UserError(
                f"--resume {path} would replace the run in {self.folder}: pass another --mark, or remove that folder"
            )
        try:
            self._load(state, path, steps_per_epoch)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
            raise damaged(path, error) from error
        self.best_file = path.parent / "best.pt"
        if not self.best_file.exists():
            self.progress.best = {}  # its file is missing: the next epoch is the best so far
        self.latest = path
        self.saved_with = {name: state[name] for name in ("processes", "threads", "code") if name in state} or None

    def _load(self, state: dict[str, Any], path: Path, steps_per_epoch: int) -> None:
        resume.check_progress(state, steps_per_epoch)
        epoch, step = state["epoch"], state["steps_done"]
        buffers = momentum_buffers(state["optimizer"], self.optimizer)
        load_strictly(self.student, state["student"], path)
        if self.guide is not None:
            load_strictly(self.guide, state["guide"], path)
        load_strictly(self.objective, state["objective"], path)
        if self.average:
            load_strictly(self.average.model, state["average"]["weights"], path)
            self.average.updates = int(state["average"]["updates"])
        # Hyper-parameters come from the configuration, not from the file.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": buffers, "param_groups": groups})
        for group in self.optimizer.param_groups:  # saved again where no step is left of the last epoch
            group["lr"] = learning_rate(self.config, epoch, (max(step, 1) - 0.5) / steps_per_epoch)
        self.step.load_state_dict(state.get("step", {}))
        self.progress.epoch, self.progress.step, self.progress.seconds = epoch, step, float(state["seconds"])
        self.progress.sums, self.progress.best = dict(state["sums"]), dict(state["best"])
        self.progress.train_robust = [float(value) for value in state.get("train_robust", [])]


def _trained(model: nn.Module) -> list[Tensor]:
    """The parameters and running statistics: another buffer, such as a mask, may hold infinities."""
    return [*model.parameters(), *(b for name, b in model.named_buffers() if "running_" in name)]
