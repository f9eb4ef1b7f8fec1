"""The training loop."""

import dataclasses
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attacks.pgd import starting_point
from engine.averaging import WeightAverage
from engine.config import TrainConfig
from engine.data import load_training_data
from engine.logger import CHOSEN_ON_TEST, RunLog, epoch_line, opening_line
from engine.schedule import attack_spec, awp_gamma, learning_rate
from engine.steps.standard import TrainStep, View
from engine.train_state import FORMAT, load_training_state
from engine.validate import evaluate
from losses import create_objective
from models import create_model
from models.accelerate import choose_acceleration
from models.weights import load_strictly, plain_state
from utils.device import choose_device, describe, set_precision
from utils.errors import UserError, ensure_writable
from utils.files import save_atomically

SECONDS_BETWEEN_SAVES = 600.0  # within an epoch; a kill -9 costs at most this much


class Stopped(Exception):
    """Training stopped before its end, on a signal or at --max-minutes; the state is saved."""


class Trainer:
    """Trains one student as the config says; everything random depends on (seed, epoch, step) alone.

    Raises:
        UserError: impossible settings, unreadable data or checkpoint, unwritable folders.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        self.device = choose_device(config.device)
        autocast = set_precision(config.precision, self.device)
        self.log_folder = Path(config.log_dir) / config.run_name
        self.checkpoint_folder = Path(config.checkpoint_dir) / config.run_name

        data = load_training_data(config, self.device)
        self.loader, self.x_eval, self.y_eval = data.loader, data.x_eval, data.y_eval
        self.eval_split, self.data_fingerprint = data.eval_split, data.fingerprint
        torch.manual_seed(config.seed)
        self.student = create_model(config.student, data.num_classes).to(self.device)
        self.objective = create_objective(config.method, num_classes=data.num_classes, **dataclasses.asdict(config)).to(
            self.device
        )
        self.guide = None
        if "guide" in self.objective.passes:
            self.guide = create_model(config.guide, data.num_classes).to(self.device)
        self.optimizer = torch.optim.SGD(
            [p for model in (self.student, self.guide) if model is not None for p in model.parameters()],
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step = TrainStep(
            self.student,
            self.guide,
            self.objective,
            self.optimizer,
            attack_spec(config, self.objective.start, epoch=1),
            autocast,
            choose_acceleration(self.device, config.compile, config.batch_size),
            config.awp_gamma,
        )
        averaged = config.average_every != "none"
        self.average = WeightAverage(self.step.student, config.average_tau) if averaged else None
        if self.average:
            self.step.networks.append(self.average.network)

        self.epoch, self.steps_done = 1, 0  # the epoch in progress, and how much of it is done
        self.sums: dict[str, Tensor] = {}  # of the epoch in progress: each term, summed over its images
        self.seconds = 0.0  # spent in the steps of the epoch in progress
        self.best: dict[str, Any] = {}
        self.epochs_here = 0
        self.good_state: Path | None = None  # the last file that this run was saved to, or goes on from
        self._stop_reason = ""
        self._resume()

    # -- the loop ------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the last epoch.

        Raises:
            Stopped: on Ctrl-C, SIGTERM or --max-minutes, after saving last.pt.
            UserError: the loss is no longer finite (last.pt stays the last good one), or a file cannot be written.
        """
        ensure_writable(self.checkpoint_folder, "--checkpoint-dir")
        self.log = RunLog(self.log_folder, self.epoch, resumed=(self.epoch, self.steps_done) != (1, 0))
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        self.started = self.last_save = time.monotonic()
        try:
            self._announce()
            for epoch in range(self.epoch, self.config.epochs + 1):
                if self._out_of_patience():
                    break
                self._train_epoch(epoch)
                self._finish_epoch(epoch)
            self.log.plot(final=True)
            self.log.info(f"finished: {self.checkpoint_folder}/last.pt, best.pt is epoch {self.best.get('epoch')}")
        except Stopped:
            self.log.plot(final=True)
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.log.close()

    def _train_epoch(self, epoch: int) -> None:
        self.step.attack = attack_spec(self.config, self.objective.start, epoch)
        self.step.awp_gamma = awp_gamma(self.config, epoch)
        first = self.steps_done
        batches = tqdm(
            self.loader.epoch(epoch, first),
            total=len(self.loader),
            initial=first,
            desc=f"epoch {epoch}/{self.config.epochs}",
            unit="step",
            leave=False,
            disable=None,
        )
        for *images, y in batches:
            begin = time.perf_counter()
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config, epoch, (self.steps_done + 0.5) / len(self.loader))
            starts = [None] * len(images)
            if "adv" in self.objective.passes:
                generator = self._generator(epoch, self.steps_done)
                starts = [starting_point(x, self.step.attack, generator) for x in images]
            second = View(images[1], starts[1], self.config.augment_view_weight) if len(images) == 2 else None
            _, terms = self.step(images[0], y, starts[0], second)
            for name, term in terms.items():
                self.sums[name] = self.sums.get(name, 0) + term.double() * len(y)
            self.steps_done += 1
            last = self.steps_done == len(self.loader)
            if self.average and (last or self.config.average_every == "step"):
                self.average.update(self.student.state_dict())
            if last:
                self.objective.end_epoch()
            # On a GPU, looking at the loss waits for it: not in every step.
            if self.device.type == "cpu" or last or self.steps_done % self.config.log_interval == 0:
                self._check_loss()
            self.seconds += time.perf_counter() - begin
            if self.steps_done % self.config.log_interval == 0:
                seen = min(self.steps_done * self.config.batch_size, len(self.loader.images))
                batches.set_postfix(loss=f"{sum(self.sums.values()).item() / seen:.4f}")
            self._save_or_stop()

    def _finish_epoch(self, epoch: int) -> None:
        """Evaluate, log, and save; the next epoch starts with fresh sums."""
        self._check_finite()
        n = len(self.loader.images)
        terms = {name: value.item() / n for name, value in self.sums.items()}
        metrics = {
            "epoch": epoch,
            "lr": learning_rate(self.config, epoch),
            "loss": sum(terms.values()),
            "terms": terms,
            "split": self.eval_split,
            **evaluate(
                self.step.student,
                self.step.guide,
                self.x_eval,
                self.y_eval,
                self.config,
                average=self.average.network if self.average else None,
                on_batch=self._save_or_stop,
            ),
            "images_per_second": n / self.seconds,
            "seconds": self.seconds,
        }
        self.log.add_epoch(metrics)
        # Time left from the epochs of this process: evaluation and saving included.
        self.epochs_here += 1
        left = (time.monotonic() - self.started) / self.epochs_here * (self.config.epochs - epoch)
        self.log.info(epoch_line(metrics, self.config.epochs, left))
        # best.pt holds the averaged weights where there are any. A method without an attack has no robust accuracy
        # worth choosing by.
        which = "average" if self.average else "student"
        criterion = f"{which}_robust" if "adv" in self.objective.passes else f"{which}_clean"
        is_best = metrics[criterion] > self.best.get(criterion, -1.0)
        if is_best:
            self.best = {"epoch": epoch, "chosen_by": criterion, "chosen_on": self.eval_split, **metrics}
        self.epoch, self.steps_done, self.sums, self.seconds = epoch + 1, 0, {}, 0.0
        # last.pt comes last: after a kill in between, the files before it are written again.
        states = {"student": plain_state(self.student)}
        if self.average:
            states["average"] = plain_state(self.average.model)
        if is_best:
            weights = {"format": FORMAT, "config": dataclasses.asdict(self.config), "student": states[which]}
            save_atomically({**weights, "best": self.best}, self.checkpoint_folder / "best.pt")
        if epoch % self.config.save_freq == 0 or epoch == self.config.epochs:
            for name, state in states.items():
                save_atomically(state, self.checkpoint_folder / f"{name}-epoch{epoch:03d}.pt")
        self._save_last()
        self.log.plot(final=False)

    def _generator(self, epoch: int, step: int) -> torch.Generator:
        # step + 1: SeedSequence pads with zeros, and (seed, epoch) is the loader's
        seed = np.random.SeedSequence((self.config.seed, epoch, step + 1)).generate_state(1)[0]
        return torch.Generator(self.device).manual_seed(int(seed))

    def _announce(self) -> None:
        config = self.config
        self.log.write_config({**dataclasses.asdict(config), "hardware": describe(self.device), "command": sys.argv})
        self.log.info(opening_line(config, self.guide is not None, len(self.loader.images), describe(self.device)))
        if config.precision == "tf32" and self.device.type == "cpu":
            self.log.info("tf32 changes nothing on a CPU")
        if self.eval_split == "test":
            self.log.info(CHOSEN_ON_TEST)
        if self.epoch > config.epochs:
            self.log.info(f"already trained for {self.epoch - 1} epochs: nothing to do")
        elif (self.epoch, self.steps_done) != (1, 0):
            self.log.info(f"going on in epoch {self.epoch} after {self.steps_done} of {len(self.loader)} steps")

    # -- stopping, saving, resuming ------------------------------------------------------------------------------

    def _out_of_patience(self) -> bool:
        """Whether --patience epochs have passed since the best one: robust overfitting has set in."""
        best = self.best.get("epoch", self.epoch - 1)
        if not self.config.patience or self.steps_done or self.epoch - 1 - best < self.config.patience:
            return False
        self.log.info(f"stopped early: no epoch since {best} was better (--patience {self.config.patience})")
        return True

    def _on_signal(self, number: int, frame: object) -> None:
        if self._stop_reason and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step's end
        self._stop_reason = signal.Signals(number).name

    def _save_or_stop(self) -> None:
        """After every batch: save now and then; save and stop if asked to."""
        minutes = (time.monotonic() - self.started) / 60
        if self.config.max_minutes and minutes >= self.config.max_minutes and not self._stop_reason:
            self._stop_reason = f"--max-minutes {self.config.max_minutes:g}"
        if self._stop_reason:
            self._save_last()
            self.log.info(
                f"stopped by {self._stop_reason} in epoch {self.epoch} after {self.steps_done} of {len(self.loader)} "
                f"steps: the same command with --resume auto goes on exactly from here"
            )
            raise Stopped(self._stop_reason)
        if time.monotonic() - self.last_save > SECONDS_BETWEEN_SAVES:
            self._save_last()

    def _check_loss(self) -> None:
        terms = {name: value.item() for name, value in self.sums.items()}
        if not all(np.isfinite(value) for value in terms.values()):
            raise self._not_finite(f"the loss ({', '.join(n for n, v in terms.items() if not np.isfinite(v))})")

    def _check_finite(self) -> None:
        """Rather fail than evaluate or save a run that has diverged."""
        self._check_loss()
        for name, model in (("student", self.student), ("guide", self.guide)):
            if model is not None and not all(torch.isfinite(t).all() for t in model.state_dict().values()):
                raise self._not_finite(f"a weight of the {name}")

    def _not_finite(self, what: str) -> UserError:
        kept = f"{self.good_state} is the last good state" if self.good_state else "no state was saved yet"
        return UserError(
            f"{what} is no longer finite in epoch {self.epoch}, step {self.steps_done}; {kept}: "
            f"try a lower --lr (now {learning_rate(self.config, self.epoch):g}) or --precision fp32"
        )

    def _save_last(self) -> None:
        self._check_finite()
        state = {
            "format": FORMAT,
            "config": dataclasses.asdict(self.config),
            "data": self.data_fingerprint,
            "student": self.student.state_dict(),
            "guide": self.guide.state_dict() if self.guide is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "epoch": self.epoch,
            "steps_done": self.steps_done,
            "sums": self.sums,
            "seconds": self.seconds,
            "best": self.best,
        }
        save_atomically(state, self.checkpoint_folder / "last.pt")
        self.good_state = self.checkpoint_folder / "last.pt"
        self.last_save = time.monotonic()

    def _resume(self) -> None:
        choice = self.config.resume
        path = self.checkpoint_folder / "last.pt" if choice == "auto" else Path(choice)
        if choice == "none" or (choice == "auto" and not path.exists()):
            return
        state = load_training_state(path, self.config, self.data_fingerprint, self.device)
        load_strictly(self.student, state["student"], path)
        if self.guide is not None:
            load_strictly(self.guide, state["guide"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.epoch, self.steps_done = state["epoch"], state["steps_done"]
        self.sums, self.seconds, self.best = state["sums"], state["seconds"], state["best"]
        if not (self.checkpoint_folder / "best.pt").exists():
            self.best = {}  # going on in another folder: the best of those epochs lies in the first one
        self.good_state = path
