"""What a training run says about itself in train.log."""

from datetime import timedelta
from typing import Any

from engine.config import TrainConfig

CHOSEN_ON_TEST = (
    "best.pt is chosen on the TEST set, so its figures are optimistic: --val-size N chooses on held-out training "
    "images instead; last.pt involves no choice"
)


def opening_line(config: TrainConfig, guided: bool, images: int, hardware: str) -> str:
    """What is trained on what, and how."""
    guide = f", guide {config.guide}" if guided else ""
    extras = [
        f"epsilon ramp to {config.epsilon:.4g}" if config.epsilon_ramp != "none" else "",
        f"weight perturbation {config.awp_gamma:g} from epoch {config.awp_start_epoch}" if config.awp_gamma else "",
        f"weights averaged each {config.average_every}" if config.average_every != "none" else "",
    ]
    return (
        f"{config.run_name}: {config.method}, student {config.student}{guide}, {config.dataset} "
        f"({images} training images), epsilon {config.epsilon:.4g} {config.norm}, "
        f"{''.join(f'{extra}, ' for extra in extras if extra)}{config.precision}, {hardware}"
    )


def epoch_line(m: dict[str, Any], epochs: int, seconds_left: float) -> str:
    """One epoch's line, from its line of metrics.jsonl."""
    terms = " ".join(f"{name} {value:.4f}" for name, value in m["terms"].items())
    guide = f", guide {m['guide_clean']:.2f}%" if "guide_clean" in m else ""
    average = ""
    if "average_clean" in m:
        average = f", average: clean {m['average_clean']:.2f}%, PGD-20 {m['average_robust']:.2f}%"
    return (
        f"epoch {m['epoch']}/{epochs}  lr {m['lr']:g}  loss {m['loss']:.4f} ({terms})  "
        f"{m['split']}: clean {m['student_clean']:.2f}%, PGD-20 {m['student_robust']:.2f}%{guide}{average}  "
        f"{m['images_per_second']:.0f} images/s  left {timedelta(seconds=round(seconds_left))}"
    )
