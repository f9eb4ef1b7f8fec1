"""Per-image results of an evaluation, and the state file from which it resumes."""

import io
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datasets.npz import check_members
from utils.errors import UserError
from utils.files import write_atomically

NUM_EXAMPLES = 5  # broken images that are saved for the picture
HINT = "delete it to start afresh, or use another --mark or folder"
NOT_WRITTEN_BEFORE = {"plain": False, "normalize": "none", "source_sha256": ""}  # what earlier versions measured
NAMES_IN_FILE = {"saved_index": "kept_index", "saved_x_adv": "kept_x_adv", "max_saved": "keep"}


@dataclass(frozen=True)
class AttackResult:
    """What the clean pass (named ``clean``) or one attack did to a chunk of B images.

    Attributes:
        prediction: (B,) int64, the predictions after it.
        broken: (B,) bool, correct before and wrong now.
        x_adv: (broken.sum(), C, H, W) float32, the adversarial examples of these.
    """

    name: str
    prediction: np.ndarray
    broken: np.ndarray
    x_adv: np.ndarray
    seconds: float


@dataclass
class PerImageResults:
    """The result of every image at every epsilon; a job is one chunk of images at one epsilon.

    Attributes:
        clean_prediction: (N,) int64; -1 until the clean pass.
        adversarial_prediction: (E, N) int64, equal to the clean one for a robust image; the headline epsilon is first.
        broken_by: (E, N) str; ``clean`` if misclassified without an attack, an attack's name, or empty if robust.
        progress: (E, chunks) int64, finished steps of each job: the clean pass, then each attack.
        seconds: (E, chunks, 1 + attacks) of wall time in these steps.
        saved_index, saved_x_adv: (K,) ascending and (K, C, H, W) float32: the first images that an attack at the
            headline epsilon broke, and their adversarial examples.
        max_saved: the largest K.
        batch_size: images in a chunk; the last chunk may have fewer.
        warnings: (W,) str, the warnings of the suite, sorted, each once.
    """

    clean_prediction: np.ndarray
    adversarial_prediction: np.ndarray
    broken_by: np.ndarray
    progress: np.ndarray
    seconds: np.ndarray
    saved_index: np.ndarray
    saved_x_adv: np.ndarray
    max_saved: int
    batch_size: int
    warnings: np.ndarray

    @classmethod
    def empty(
        cls,
        n: int,
        image_shape: tuple[int, ...],
        batch_size: int,
        num_attacks: int,
        num_epsilons: int = 1,
        max_saved: int = NUM_EXAMPLES,
    ) -> "PerImageResults":
        """Return the results of n images of shape (C, H, W) before anything has run."""
        jobs = num_epsilons, -(-n // batch_size)
        return cls(
            clean_prediction=np.full(n, -1, np.int64),
            adversarial_prediction=np.full((num_epsilons, n), -1, np.int64),
            broken_by=np.full((num_epsilons, n), "", "U16"),
            progress=np.zeros(jobs, np.int64),
            seconds=np.zeros((*jobs, 1 + num_attacks)),
            saved_index=np.zeros(0, np.int64),
            saved_x_adv=np.zeros((0, *image_shape), np.float32),
            max_saved=max_saved,
            batch_size=batch_size,
            warnings=np.zeros(0, "U1"),
        )

    @property
    def robust(self) -> np.ndarray:
        """(E, N) bool."""
        return self.broken_by == ""

    @property
    def unfinished(self) -> np.ndarray:
        """(jobs, 2) of indices (epsilon, chunk): the headline's first."""
        return np.argwhere(self.progress < self.seconds.shape[-1])

    @property
    def example_index(self) -> np.ndarray:
        """(K,) of at most NUM_EXAMPLES images for a picture."""
        return self.saved_index[:NUM_EXAMPLES]

    @property
    def example_x_adv(self) -> np.ndarray:
        """(K, C, H, W) float32: the adversarial examples of these images."""
        return self.saved_x_adv[:NUM_EXAMPLES]

    def part(self, chunk: int) -> slice:
        """The images of a chunk."""
        return slice(chunk * self.batch_size, min((chunk + 1) * self.batch_size, len(self.clean_prediction)))

    def accuracies(self, attacks: tuple[str, ...], epsilon: int = 0) -> dict[str, float]:
        """Percentage of all images still correct at an epsilon (its index): ``clean``, then after each attack."""
        lost, accuracies, broken_by = 0, {}, self.broken_by[epsilon]
        for name in ("clean", *attacks):
            lost += int((broken_by == name).sum())
            accuracies[name] = 100 * (len(broken_by) - lost) / len(broken_by)
        return accuracies

    def x_adv(self, x: np.ndarray) -> np.ndarray:
        """The adversarial image of every image at the headline epsilon, if all broken ones were saved.

        Args:
            x: clean images (N, C, H, W) float32 in [0, 1].

        Returns:
            The same, with the adversarial example where an attack broke the image.
        """
        x = x.copy()
        x[self.saved_index] = self.saved_x_adv
        return x

    def add(self, epsilon: int, chunk: int, step: AttackResult) -> None:
        """Add the next step of a job."""
        part, done = self.part(chunk), self.progress[epsilon, chunk]
        if step.name == "clean":
            self.clean_prediction[part] = step.prediction
        elif epsilon == 0:
            self._save_images(part.start + np.flatnonzero(step.broken), step.x_adv)
        self.adversarial_prediction[epsilon, part] = step.prediction
        self.broken_by[epsilon, part][step.broken] = step.name
        self.seconds[epsilon, chunk, done] = step.seconds
        self.progress[epsilon, chunk] += 1

    def merge(self, other: "PerImageResults") -> None:
        """Take from another process's results every job that got further there."""
        for epsilon, chunk in np.argwhere(other.progress > self.progress):
            part = self.part(chunk)
            self.clean_prediction[part] = other.clean_prediction[part]
            for name, where in (
                ("adversarial_prediction", part), ("broken_by", part), ("seconds", chunk), ("progress", chunk),
            ):  # fmt: skip
                getattr(self, name)[epsilon, where] = getattr(other, name)[epsilon, where]
        self._save_images(other.saved_index, other.saved_x_adv)
        for message in other.warnings:
            self.warn(message)

    def warn(self, message: str) -> None:
        """Add a warning of the suite."""
        self.warnings = np.unique([*self.warnings, message])

    def _save_images(self, index: np.ndarray, x_adv: np.ndarray) -> None:
        index, x_adv = np.concatenate([self.saved_index, index]), np.concatenate([self.saved_x_adv, x_adv])
        self.saved_index, first = np.unique(index, return_index=True)
        self.saved_index, self.saved_x_adv = self.saved_index[: self.max_saved], x_adv[first[: self.max_saved]]

    def write(self, file: BinaryIO, fingerprint: dict[str, Any]) -> None:
        """Write an npz of these arrays and the fingerprint of the evaluation."""
        arrays = {NAMES_IN_FILE.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}
        np.savez(file, fingerprint=json.dumps(fingerprint), **arrays)

    def to_bytes(self, fingerprint: dict[str, Any]) -> bytes:
        buffer = io.BytesIO()
        self.write(buffer, fingerprint)
        return buffer.getvalue()

    def save(self, path: Path, fingerprint: dict[str, Any]) -> None:
        write_atomically(path, lambda file: self.write(file, fingerprint))

    @classmethod
    def load(
        cls, source: Path | bytes, fingerprint: dict[str, Any], like: "PerImageResults", name: str = ""
    ) -> "PerImageResults":
        """Read a state file, or the bytes of one.

        Args:
            fingerprint: of the evaluation that is to resume.
            like: results of this evaluation; those in the file must have its shapes.
            name: of the source, for errors; by default the path.

        Raises:
            UserError: the file is damaged, or of an evaluation with another fingerprint.
        """
        name = name or str(source)
        try:
            with np.load(io.BytesIO(source) if isinstance(source, bytes) else source, allow_pickle=False) as file:
                check_members(file.zip, file.files)
                theirs = json.loads(str(file["fingerprint"]))
                if not (differ := differences(theirs, fingerprint)):
                    arrays = {f.name: file[NAMES_IN_FILE.get(f.name, f.name)][()] for f in fields(cls)}
                    like.check_shapes(arrays)
                    return cls(**arrays)
        except PermissionError:
            raise
        except Exception as error:  # a damaged file makes zipfile and numpy raise nearly anything
            raise UserError(f"{name} is damaged, cannot resume: {HINT}") from error
        raise UserError(f"{name} is of another, unfinished evaluation ({differ}): {HINT}")

    def check_shapes(self, arrays: dict[str, np.ndarray]) -> None:
        """Raises: ValueError: the arrays, by the names of the fields, do not have the types and shapes of these."""
        for field in fields(self):
            ours, theirs = np.asarray(getattr(self, field.name)), np.asarray(arrays[field.name])
            # How many images and warnings there are depends on what was found so far.
            start = 1 if field.name in ("saved_index", "saved_x_adv", "warnings") else 0
            fits = ours.dtype.kind == theirs.dtype.kind and ours.ndim == theirs.ndim
            if not fits or ours.shape[start:] != theirs.shape[start:]:
                raise ValueError(field.name)
        index, progress = arrays["saved_index"], arrays["progress"]
        in_range = np.all((index >= 0) & (index < len(self.clean_prediction)))
        if not in_range or len(index) != len(arrays["saved_x_adv"]) or arrays["batch_size"] != self.batch_size:
            raise ValueError("saved_index")
        if progress.min() < 0 or progress.max() > self.seconds.shape[-1]:
            raise ValueError("progress")


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The entries in which two fingerprints differ, as text; empty if in none."""
    theirs = NOT_WRITTEN_BEFORE | theirs
    return "; ".join(
        f"{key} {_short(theirs.get(key))} there and {_short(value)} here"
        for key, value in ours.items()
        if theirs.get(key) != value
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text  # a SHA-256
