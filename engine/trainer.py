"""The training loop."""

import os
import sys
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.averaging import create_average
from engine.config import TrainConfig
from engine.cost import step_gflop
from engine.data import check_batches, load_training_data
from engine.logger import Logger, NoLog, Pace
from engine.networks import create_guide
from engine.optimizer import create_optimizer
from engine.overfitting import catastrophic, overfitting_sentence, training_accuracy
from engine.schedule import attack_spec, awp_gamma, learning_rate, update_rates
from engine.steps import create_step
from engine.stopping import StopSignal, out_of_patience
from engine.train_state import Checkpoints, Progress
from engine.validate import evaluate
from losses import create_objective
from models import create_model
from models.accelerate import choose_acceleration
from models.batchnorm import alone
from models.batchnorm_sets import add_second_batchnorms
from utils.device import choose_device, set_deterministic, set_precision
from utils.distributed import ProcessGroup
from utils.errors import UserError, ensure_writable
from utils.files import lock_folder
from utils.flops import peak_flops
from utils.provenance import provenance


class Trainer:
    """Trains one student as the configuration says; everything random depends on (seed, epoch, step) alone.

    Args:
        group: the processes that train together, each on its rows of every batch; process 0 writes the files.

    Raises:
        UserError: impossible settings, unreadable data or checkpoint, unwritable folders.
    """

    def __init__(self, config: TrainConfig, group: ProcessGroup | None = None):
        self.config, self.group = config, group or ProcessGroup()
        self.device = choose_device(self.group.device(config.device))
        autocast = set_precision(config.precision, self.device)
        set_deterministic(config.deterministic)
        self.data = load_training_data(config, self.device)
        torch.manual_seed(config.seed)
        self.student = create_model(config.student, self.data.num_classes, config.normalize).to(self.device)
        self.objective = create_objective(
            config.method, self.data.num_classes, config.label_smoothing, **config.parameters
        ).to(self.device)
        if self.objective.bn_sets > 1:
            add_second_batchnorms(self.student)
        if weights := [name for name, p in self.objective.named_parameters() if p.requires_grad]:
            raise UserError(f"{config.method} has a trainable {weights[0]}, which no optimizer has: make it a buffer")
        self.guide = create_guide(config, self.objective, self.data.num_classes, self.device)
        parts = config.accumulate * (self.group.size if config.batch_norm == "local" else 1)
        guide = config.guide if self.guide else None
        check_batches(self.data.loader, self.data.num_classes, config.student, guide, parts)
        self.optimizer = create_optimizer(config, [net for net in (self.student, self.guide) if net is not None])
        self.step = create_step(
            self.student,
            self.guide,
            self.objective,
            self.optimizer,
            attack_spec(config, self.objective.start, epoch=1),
            awp_gamma=config.awp_gamma,
            view_weights=(1.0, config.augment_view_weight),
            autocast=autocast,
            acceleration=choose_acceleration(
                self.device, config.compile, config.batch_size // config.accumulate, self.group
            ),
            group=self.group,
            batch_norm=config.batch_norm,
            accumulate=config.accumulate,
        )
        self.average = create_average(config, self.step.student, len(self.data.loader))
        self.peak = (peak_flops(self.device, config.precision) or 0.0) * self.group.size
        self.gflop = 0.0
        if self.peak:
            try:
                self.gflop = step_gflop(config, self.data.num_classes, *self.data.loader.images.shape[2:])
            except Exception:  # a user's network may look at values, which the count has not
                self.peak = 0.0
        self.progress = Progress()
        self.checkpoints = Checkpoints(
            config, self.data.fingerprint, self.student, self.guide, self.objective, self.optimizer, self.step,
            self.average, self.progress, group=self.group,
        )  # fmt: skip
        self.checkpoints.resume(self.device, len(self.data.loader))

    def fit(self) -> None:
        """Train to the last epoch, alone in the run's folder.

        Raises:
            Stopped: on Ctrl-C, SIGTERM or --max-minutes, after saving last.pt.
            UserError: the loss is no longer finite (last.pt stays the last good one), a file cannot be written, or
                another training has this folder.
        """
        config, folder, logs = self.config, self.checkpoints.folder, self.config.log_folder
        if self.progress.epoch > config.epochs:
            if not self.group.is_main:
                return
            done = f"already trained for {self.progress.epoch - 1} epochs: nothing to do ({self.checkpoints.latest})"
            print(f"{done}; --epochs N trains on, --resume none trains anew, for instance after a change of the code")
            return
        with ExitStack() as locks:
            if self.group.is_main:
                folders = ((folder, "--checkpoint-dir"), (logs, "--log-dir"))
                for path, option in {os.path.realpath(path): (path, option) for path, option in folders}.values():
                    ensure_writable(path, option)
                    locks.enter_context(lock_folder(path, "training"))
            self.checkpoints.begin()
            steps = len(self.data.loader)
            logger = Logger(config, self.progress, self.checkpoints.latest) if self.group.is_main else NoLog()
            with logger as log, StopSignal(self.checkpoints, steps, log.info, self.group) as stop:
                settings = config.as_dict() | provenance(self.device, self.group.size)
                log.opening(settings, self.objective, self.guide is not None, self.data)
                if self.progress.started:
                    log.resumed(self.checkpoints, steps)
                try:
                    self._train_epochs(log, stop, Pace(config.epochs, steps))
                    best = self.progress.best.get("epoch")
                    log.info(f"finished: {folder}/last.pt; best.pt is epoch {best}")
                except RuntimeError as error:
                    if config.deterministic and "deterministic" in str(error):
                        raise UserError(f"--deterministic is not possible here: {str(error).split('.')[0]}") from error
                    raise
                finally:
                    log.plot(final=True)
            self.group.all_reduce_(torch.zeros(1))  # waits until process 0 has written everything

    def _train_epochs(self, log: Logger, stop: StopSignal, pace: Pace) -> None:
        config, progress = self.config, self.progress
        for epoch in range(progress.epoch, config.epochs + 1):
            if out_of_patience(config.patience, progress):
                best = progress.best["epoch"]
                log.info(f"stopped early: no epoch since {best} was better (--patience {config.patience})")
                return
            self._train_epoch(epoch, stop, pace)
            if config.stop_overfitting and catastrophic(progress.train_robust):
                log.info(overfitting_sentence(progress.train_robust, epoch))
                self.checkpoints.save_last()  # a rerun stops here too
                return
            metrics = self._validate(epoch, stop)
            log.epoch(metrics, pace.epoch_done(epoch))
            log.board(metrics, self.step.student, self.data.x_eval, self.data.y_eval)
            progress.next_epoch()
            self.checkpoints.save_epoch(epoch, metrics, self.data.eval_split)
            log.plot()

    def _train_epoch(self, epoch: int, stop: StopSignal, pace: Pace) -> None:
        """Train the remaining steps of an epoch."""
        config, progress, loader = self.config, self.progress, self.data.loader
        self.step.set_epoch(attack_spec(config, self.objective.start, epoch), awp_gamma(config, epoch))
        self.objective.begin_epoch(epoch)
        bar = tqdm(
            loader.epoch(epoch, progress.step),
            total=len(loader),
            initial=progress.step,
            desc=f"epoch {epoch}/{config.epochs}",
            unit="step",
            leave=False,
            disable=sys.stderr is None or not self.group.is_main or None,
        )
        for *views, y in bar:
            begin = time.perf_counter()
            at = epoch, progress.step, len(loader), self.step.updates_per_batch
            self.step.set_rates(update_rates(config, *at))
            progress.add(self.step(views, y, self._generator(epoch, progress.step)), len(y))
            last = progress.step == len(loader)
            if self.average and (last or config.average_every == "step"):
                self.average.update(self.student.state_dict())
            if last:
                self.objective.end_epoch()
                if config.stop_overfitting:
                    progress.train_robust.append(self._overfitting_test(epoch))
            # On a GPU, reading the loss waits for it: not in every step.
            if self.device.type == "cpu" or last or progress.step % config.log_interval == 0:
                self.checkpoints.check_loss()
            seconds = time.perf_counter() - begin
            progress.seconds += seconds
            pace.add(seconds)
            if progress.step % config.log_interval == 0:
                seen = min(progress.step * config.batch_size, len(loader.images))
                bar.set_postfix(loss=f"{sum(progress.means(seen).values()):.4f}")
            stop.check()

    def _overfitting_test(self, epoch: int) -> float:
        """Accuracy under PGD-5 on the epoch's first batch; its passes in train mode move the BatchNorm statistics."""
        x, *_, y = next(self.data.loader.epoch(epoch))
        spec = attack_spec(self.config, "uniform", epoch)
        with alone(self.student):  # every process has the whole batch
            generator = self._generator(epoch, len(self.data.loader))
            accuracy = training_accuracy(self.step.student, x, y, spec, generator)
        self.group.broadcast_(*self.student.buffers())  # GPUs may differ in rounding
        return self.group.broadcast(accuracy)

    def _validate(self, epoch: int, stop: StopSignal) -> dict[str, Any]:
        """The epoch's entry of metrics.jsonl: its losses, and the accuracies after it."""
        self.checkpoints.check_finite()
        n, seconds = len(self.data.loader.images), self.progress.seconds
        terms = self.progress.means(n)
        entry = {
            "epoch": epoch,
            "lr": float(f"{learning_rate(self.config, epoch):.12g}"),
            "loss": sum(terms.values()),
            **{f"loss_{name}": value for name, value in terms.items()},
            "split": self.data.eval_split,
            **evaluate(
                self.step.student,
                self.step.guide,
                self.data.x_eval,
                self.data.y_eval,
                self.config,
                average=self.average.network if self.average else None,
                on_batch=stop.check,
                group=self.group,
            ),
            **({"train_robust": 100 * self.progress.train_robust[-1]} if self.config.stop_overfitting else {}),
            "images_per_second": n / seconds,
            **({"of_peak": self.gflop * 1e9 * n / seconds / self.peak} if self.peak else {}),
            "seconds": seconds,
        }
        return {name: v.item() if isinstance(v, (Tensor, np.generic)) else v for name, v in entry.items()}

    def _generator(self, epoch: int, step: int) -> torch.Generator:
        # step + 1: SeedSequence pads with zeros, and (seed, epoch) is the loader's
        seed = np.random.SeedSequence((self.config.seed, epoch, step + 1)).generate_state(1)[0]
        return torch.Generator(self.device).manual_seed(int(seed))
