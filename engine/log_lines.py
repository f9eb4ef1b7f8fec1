"""The lines of a run's log: what is trained, and an epoch."""

from datetime import timedelta
from itertools import repeat
from typing import Any

from engine.config import TrainConfig
from utils.options import format_epsilon

DECAYING = ("multistep", "piecewise")  # schedules that --decay-epochs is for


def describe_run(config: TrainConfig, guided: bool, images: int) -> str:
    """What is trained, in one line."""
    parameters = ", ".join(f"{name} {value:g}" for name, value in config.parameters.items())
    epochs, factors = config.decay_epochs if config.schedule in DECAYING else (), config.decay_factors
    decays = zip(epochs, factors or repeat(0.1), strict=False)
    decayed = "".join(f", times {factor:g} from epoch {epoch:g}" for epoch, factor in decays)
    step = f"{config.step_ratio:g} epsilon" if config.step_ratio else format_epsilon(config.step_size)
    attack = "" if config.method == "natural" else f", {config.num_steps} attack steps of {step}"
    held_out = f"{config.val_size} held-out" if config.val_size else "test"
    factor = config.warmup_factor if config.schedule == "multistep" else 1
    warmup = f", times {factor:g} in epoch 1" if factor != 1 else ""
    by_schedule = config.schedule.startswith("onecycle-")
    parts = [
        f"{config.method} ({parameters})" if parameters else config.method,
        f"student {config.student}",
        f"guide {config.guide}" if guided else "",
        f"normalisation {config.normalize}" if config.normalize != "none" else "",
        f"{config.dataset} ({images} training images, evaluated on {held_out} images)",
        f"{config.extra_fraction:.0%} of each batch from {config.extra_data}" if config.extra_data else "",
        f"augmentation {config.augment}" if config.augment != "none" else "",
        f"second view times {config.augment_view_weight:g}" if config.augment_view_weight else "",
        f"{config.epochs} epochs of batches of {config.batch_size}",
        f"lr {config.lr:g} {config.schedule}{warmup}{decayed}",
        f"momentum {config.momentum:g}{', Nesterov' * config.nesterov}" if not by_schedule else "momentum 0.95 to 0.85",
        f"weight decay {config.weight_decay:g}{', not of BatchNorm' * config.no_norm_decay}",
        f"label smoothing {config.label_smoothing:g}" if config.label_smoothing else "",
        f"in {config.accumulate} parts" if config.accumulate > 1 else "",
        f"{config.norm} epsilon {format_epsilon(config.epsilon)}{attack}",
        f"epsilon ramp {config.epsilon_ramp}" if config.epsilon_ramp != "none" else "",
        f"weight perturbation {config.awp_gamma:g} from epoch {config.awp_start_epoch}" if config.awp_gamma else "",
        f"weights averaged each {config.average_every}, tau {config.average_tau:g}"
        if config.average_every != "none"
        else "",
        f"seed {config.seed}",
        config.precision,
    ]
    return ", ".join(part for part in parts if part)


def terms_of(entry: dict[str, Any]) -> dict[str, float]:
    """The terms of the loss in an entry of metrics.jsonl; runs of earlier versions have them under ``terms``."""
    flat = {key.removeprefix("loss_"): value for key, value in entry.items() if key.startswith("loss_")}
    return flat or dict(entry.get("terms", {}))


def epoch_line(m: dict[str, Any], epochs: int, seconds_left: float) -> str:
    """One epoch's line, from its entry of metrics.jsonl."""
    terms = " ".join(f"{name} {value:.4f}" for name, value in terms_of(m).items())
    guide = f", guide {m['guide_clean']:.2f}%" if "guide_clean" in m else ""
    average = ""
    if "average_clean" in m:
        average = f", average: clean {m['average_clean']:.2f}%, PGD-20 {m['average_robust']:.2f}%"
    overfitting = f", PGD-5 on training images {m['train_robust']:.2f}%" if "train_robust" in m else ""
    peak = f" ({m['of_peak']:.0%} of the peak)" if "of_peak" in m else ""
    return (
        f"epoch {m['epoch']}/{epochs}  lr {m['lr']:g}  loss {m['loss']:.4f} ({terms})  "
        f"{m['split']}: clean {m['student_clean']:.2f}%, PGD-20 {m['student_robust']:.2f}%{guide}{average}"
        f"{overfitting}  {m['images_per_second']:.0f} images/s{peak}  left {timedelta(seconds=round(seconds_left))}"
    )
