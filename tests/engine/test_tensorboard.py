"""``--tensorboard``: scalars, adversarial images and hyper-parameters, and the same weights as without."""

import sys

import pytest
import torch

from engine.trainer import Trainer
from tests.helpers import tiny_run
from utils.errors import UserError

SMALL = {"method": "trades", "limit_train": 16, "num_steps": 1, "eval_size": 4, "val_size": 8, "decay_epochs": ()}


def test_what_is_on_the_board(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = Trainer(tiny_run(tmp_path / "a", **SMALL, epochs=1, tensorboard=True))
    trainer.fit()
    plain = Trainer(tiny_run(tmp_path / "b", **SMALL, epochs=1))
    plain.fit()
    assert all(torch.equal(a, b) for a, b in zip(trainer.student.parameters(), plain.student.parameters(), strict=True))
    Trainer(tiny_run(tmp_path / "a", **SMALL, epochs=2, tensorboard=True)).fit()  # resumed: one curve
    board = accumulator.EventAccumulator(str(tmp_path / "a" / "Logs" / "run" / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert {"accuracy/student_robust", "loss/loss", "loss/kl", "run/lr", "final/student_robust"} <= set(tags["scalars"])
    assert [event.step for event in board.Scalars("accuracy/student_robust")] == [1, 2]
    (image, *_) = board.Images("clean above adversarial")
    assert (image.width, image.height) == (8 * 16, 2 * 16)


def test_without_the_package_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    trainer = Trainer(tiny_run(tmp_path, **SMALL, epochs=1, tensorboard=True))
    with pytest.raises(UserError, match="--tensorboard needs the package tensorboard: pip install tensorboard"):
        trainer.fit()
