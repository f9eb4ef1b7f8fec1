"""What an evaluation knows of every image so far, and the state file from which it goes on."""

import json
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import write_atomically
from engine.errors import UserError

NUM_SHOWN = 5  # broken images that are kept for the picture


@dataclass
class Outcomes:
    """What came of every image; those of unfinished chunks are not filled in yet.

    Attributes:
        clean_prediction, adversarial_prediction: (N,) int64; equal for a robust image.
        broken_by: (N,) str; ``clean`` if it was misclassified unattacked, an attack's name, or empty if robust.
        finished: (chunks,) bool.
        seconds: (chunks, 1 + attacks) of the clean pass and of each attack.
        shown_index, shown_x_adv: some images that an attack broke, (K,) and (K, C, H, W) float32.
    """

    clean_prediction: np.ndarray
    adversarial_prediction: np.ndarray
    broken_by: np.ndarray
    finished: np.ndarray
    seconds: np.ndarray
    shown_index: np.ndarray
    shown_x_adv: np.ndarray

    @classmethod
    def empty(cls, n: int, num_chunks: int, num_attacks: int, image_shape: tuple[int, ...]) -> "Outcomes":
        return cls(
            clean_prediction=np.full(n, -1, np.int64),
            adversarial_prediction=np.full(n, -1, np.int64),
            broken_by=np.full(n, "", "U16"),
            finished=np.zeros(num_chunks, bool),
            seconds=np.zeros((num_chunks, 1 + num_attacks)),
            shown_index=np.zeros(0, np.int64),
            shown_x_adv=np.zeros((0, *image_shape), np.float32),
        )

    @property
    def robust(self) -> np.ndarray:
        return self.broken_by == ""

    def accuracies(self, attacks: tuple[str, ...]) -> dict[str, float]:
        """Percentage of all images still right: ``clean``, then after each attack, in their order."""
        lost, accuracies = 0, {}
        for name in ("clean", *attacks):
            lost += int((self.broken_by == name).sum())
            accuracies[name] = 100 * (len(self.broken_by) - lost) / len(self.broken_by)
        return accuracies

    def add(self, chunk: int, part: slice, result: dict[str, np.ndarray]) -> None:
        """Take in what ``attack_chunk`` returned for the images of one chunk."""
        for name in ("clean_prediction", "adversarial_prediction", "broken_by"):
            getattr(self, name)[part] = result[name]
        self.seconds[chunk], self.finished[chunk] = result["seconds"], True
        attacked = np.flatnonzero((result["broken_by"] != "") & (result["broken_by"] != "clean"))
        attacked = attacked[: NUM_SHOWN - len(self.shown_index)]
        self.shown_index = np.concatenate([self.shown_index, part.start + attacked])
        self.shown_x_adv = np.concatenate([self.shown_x_adv, result["x_adv"][attacked]])

    def save(self, path: Path, fingerprint: dict[str, Any]) -> None:
        write_atomically(path, lambda file: np.savez(file, fingerprint=json.dumps(fingerprint), **asdict(self)))

    @classmethod
    def load(cls, path: Path, fingerprint: dict[str, Any]) -> "Outcomes":
        """What an interrupted evaluation left.

        Raises:
            UserError: the file is damaged, or of an evaluation with another fingerprint.
        """
        mend = "delete it to start afresh, or use another --mark"
        try:
            with np.load(path, allow_pickle=False) as file:
                theirs = json.loads(str(file["fingerprint"]))
                outcomes = cls(**{field.name: file[field.name] for field in fields(cls)})
        except (zipfile.BadZipFile, ValueError, EOFError, LookupError, AttributeError) as error:
            raise UserError(f"{path} is damaged and cannot be gone on with: {mend}") from error
        differ = [
            f"{key} {_short(theirs.get(key))} there and {_short(value)} here"
            for key, value in fingerprint.items()
            if theirs.get(key) != value
        ]
        if differ:
            raise UserError(f"{path} is of another, unfinished evaluation ({'; '.join(differ)}): {mend}")
        return outcomes


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text  # a SHA-256
