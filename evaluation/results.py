"""What an evaluation knows of every image so far, and the state file from which it goes on."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import write_atomically

NUM_EXAMPLES = 5  # broken images that are kept for the picture
HINT = "delete it to start afresh, or use another --mark"


@dataclass(frozen=True)
class AttackResult:
    """What the clean pass (named ``clean``) or one attack did to a chunk of B images.

    Attributes:
        prediction: (B,) int64, what each image is taken for now.
        broken: (B,) bool, right before and wrong now.
        x_adv: (broken.sum(), C, H, W) float32, what these were turned into.
    """

    name: str
    prediction: np.ndarray
    broken: np.ndarray
    x_adv: np.ndarray
    seconds: float


@dataclass
class PerImageResults:
    """What came of every image at every epsilon; a job is one chunk of images at one epsilon.

    Attributes:
        clean_prediction: (N,) int64; -1 until the clean pass.
        adversarial_prediction: (E, N) int64, equal to the clean one for a robust image; the headline epsilon is first.
        broken_by: (E, N) str; ``clean`` if it was misclassified unattacked, an attack's name, or empty if robust.
        progress: (E, chunks) int64, finished steps of each job: the clean pass, then each attack.
        seconds: (E, chunks, 1 + attacks) of wall time in these steps.
        kept_index, kept_x_adv: (K,) ascending and (K, C, H, W) float32: the first images that an attack at the headline
            epsilon broke, and what they were turned into.
        keep: the largest K.
        batch_size: images in a chunk; the last chunk may have fewer.
        warnings: (W,) str, what the suite warned of, sorted, each once.
    """

    clean_prediction: np.ndarray
    adversarial_prediction: np.ndarray
    broken_by: np.ndarray
    progress: np.ndarray
    seconds: np.ndarray
    kept_index: np.ndarray
    kept_x_adv: np.ndarray
    keep: int
    batch_size: int
    warnings: np.ndarray

    @classmethod
    def empty(
        cls, images: np.ndarray, batch_size: int, num_attacks: int, num_epsilons: int = 1, keep: int = NUM_EXAMPLES
    ) -> "PerImageResults":
        """For images (N, H, W, C) of which none has been looked at."""
        n, height, width, channels = images.shape
        jobs = num_epsilons, -(-n // batch_size)
        return cls(
            clean_prediction=np.full(n, -1, np.int64),
            adversarial_prediction=np.full((num_epsilons, n), -1, np.int64),
            broken_by=np.full((num_epsilons, n), "", "U16"),
            progress=np.zeros(jobs, np.int64),
            seconds=np.zeros((*jobs, 1 + num_attacks)),
            kept_index=np.zeros(0, np.int64),
            kept_x_adv=np.zeros((0, channels, height, width), np.float32),
            keep=keep,
            batch_size=batch_size,
            warnings=np.zeros(0, "U1"),
        )

    @property
    def robust(self) -> np.ndarray:
        """(E, N) bool."""
        return self.broken_by == ""

    @property
    def finished(self) -> int:
        """How many jobs are done."""
        return int((self.progress == self.seconds.shape[-1]).sum())

    @property
    def unfinished(self) -> np.ndarray:
        """(jobs, 2) of indices (epsilon, chunk): the headline's first."""
        return np.argwhere(self.progress < self.seconds.shape[-1])

    @property
    def shown_index(self) -> np.ndarray:
        """(K,) of at most NUM_EXAMPLES images for a picture."""
        return self.kept_index[:NUM_EXAMPLES]

    @property
    def shown_x_adv(self) -> np.ndarray:
        """(K, C, H, W) float32: what these images were turned into."""
        return self.kept_x_adv[:NUM_EXAMPLES]

    def part(self, chunk: int) -> slice:
        """The images of a chunk."""
        return slice(chunk * self.batch_size, min((chunk + 1) * self.batch_size, len(self.clean_prediction)))

    def accuracies(self, attacks: tuple[str, ...], epsilon: int = 0) -> dict[str, float]:
        """Percentage of all images still right at an epsilon (its index): ``clean``, then after each attack."""
        lost, accuracies, broken_by = 0, {}, self.broken_by[epsilon]
        for name in ("clean", *attacks):
            lost += int((broken_by == name).sum())
            accuracies[name] = 100 * (len(broken_by) - lost) / len(broken_by)
        return accuracies

    def x_adv(self, images: np.ndarray) -> np.ndarray:
        """What every image was turned into at the headline epsilon, if all broken ones were kept.

        Args:
            images: (N, H, W, C) uint8.

        Returns:
            (N, C, H, W) float32 in [0, 1]: the clean image where no attack broke it.
        """
        x_adv = np.transpose(images, (0, 3, 1, 2)) / np.float32(255)
        x_adv[self.kept_index] = self.kept_x_adv
        return x_adv

    def add(self, epsilon: int, chunk: int, step: AttackResult) -> None:
        """Take in the next step of a job."""
        part, done = self.part(chunk), self.progress[epsilon, chunk]
        if step.name == "clean":
            self.clean_prediction[part] = step.prediction
        elif epsilon == 0:
            self._keep(part.start + np.flatnonzero(step.broken), step.x_adv)
        self.adversarial_prediction[epsilon, part] = step.prediction
        self.broken_by[epsilon, part][step.broken] = step.name
        self.seconds[epsilon, chunk, done] = step.seconds
        self.progress[epsilon, chunk] += 1

    def merge(self, other: "PerImageResults") -> None:
        """Take from another process's outcomes every job that got further there."""
        for epsilon, chunk in np.argwhere(other.progress > self.progress):
            part = self.part(chunk)
            self.clean_prediction[part] = other.clean_prediction[part]
            for mine, theirs in (
                (self.adversarial_prediction, other.adversarial_prediction),
                (self.broken_by, other.broken_by),
            ):
                mine[epsilon, part] = theirs[epsilon, part]
            for mine, theirs in ((self.seconds, other.seconds), (self.progress, other.progress)):
                mine[epsilon, chunk] = theirs[epsilon, chunk]
        self._keep(other.kept_index, other.kept_x_adv)
        for message in other.warnings:
            self.warn(message)

    def warn(self, message: str) -> None:
        """Take in a warning of the suite."""
        self.warnings = np.unique([*self.warnings, message])

    def _keep(self, index: np.ndarray, x_adv: np.ndarray) -> None:
        index, x_adv = np.concatenate([self.kept_index, index]), np.concatenate([self.kept_x_adv, x_adv])
        self.kept_index, first = np.unique(index, return_index=True)
        self.kept_index, self.kept_x_adv = self.kept_index[: self.keep], x_adv[first[: self.keep]]

    def save(self, path: Path, fingerprint: dict[str, Any]) -> None:
        write_atomically(path, lambda file: np.savez(file, fingerprint=json.dumps(fingerprint), **asdict(self)))

    @classmethod
    def load(cls, path: Path, fingerprint: dict[str, Any]) -> "PerImageResults":
        """What an interrupted evaluation left.

        Raises:
            UserError: the file is damaged, or of an evaluation with another fingerprint.
        """
        theirs, outcomes = read_state(path)
        if differ := differences(theirs, fingerprint):
            raise UserError(f"{path} is of another, unfinished evaluation ({differ}): {HINT}")
        return outcomes


def read_state(path: Path) -> tuple[dict[str, Any], PerImageResults]:
    """Raises: UserError: the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            outcomes = PerImageResults(**{field.name: file[field.name][()] for field in fields(PerImageResults)})
            return json.loads(str(file["fingerprint"])), outcomes
    except PermissionError:
        raise
    except Exception as error:  # a damaged file makes zipfile and numpy raise nearly anything
        raise UserError(f"{path} is damaged and cannot be gone on with: {HINT}") from error


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """In what two fingerprints differ; empty if in nothing."""
    return "; ".join(
        f"{key} {_short(theirs.get(key))} there and {_short(value)} here"
        for key, value in ours.items()
        if theirs.get(key) != value
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text  # a SHA-256
