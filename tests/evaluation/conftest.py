"""Fixtures of the evaluation's tests."""

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.square import SquareAttack

import eval_autoattack
from engine.train_state import FORMAT
from tests.helpers import trained
from utils.errors import run_program


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A naturally trained wrn-10-1, whose images all fall to the first attack, as a training run leaves it."""
    path = tmp_path_factory.mktemp("checkpoints") / "some-run" / "last.pt"
    path.parent.mkdir()
    model = trained("wrn-10-1-natural")
    config = {"student": "wrn-10-1", "dataset": "digits", "seed": 1}
    torch.save({"format": FORMAT, "config": config, "student": model.state_dict()}, path)
    return path


@pytest.fixture
def program(capsys, tmp_path, monkeypatch):
    """Call the program; -> exit status, standard output and standard error. Logs go to tmp_path/Logs.

    APGD takes 10 steps for its 100, in the official front end as well: what the figures are is tested elsewhere.
    """
    perturb = APGDAttack.perturb

    def short(self, *args, **kwargs):
        self.n_iter = 10
        return perturb(self, *args, **kwargs)

    monkeypatch.setattr(APGDAttack, "perturb", short)

    def call(*argv):
        status = 0
        capsys.readouterr()
        argv = ["--log-dir", str(tmp_path / "Logs"), *map(str, argv)]
        try:
            run_program(lambda: eval_autoattack.main(argv))
        except SystemExit as exit_:
            status = exit_.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def few_queries(monkeypatch):
    """A tenth of Square's 5,000, in the official front end as well."""
    perturb = SquareAttack.perturb

    def quick(self, *args, **kwargs):
        self.n_queries = 500
        return perturb(self, *args, **kwargs)

    monkeypatch.setattr(SquareAttack, "perturb", quick)
