"""An interrupted evaluation resumes after any step, also one of an earlier version of this program."""

import json
import shutil

import numpy as np
import pytest

from evaluation import attack_loop, summary
from evaluation.autoattack.suite import Suite
from evaluation.results import PerImageResults
from evaluation.resume import resume, state_path
from tests.helpers import DATA, QUICK, assert_same_results, evaluated, suite, trained
from utils.distributed import ProcessGroup

OLD = DATA / "old-evaluation"


def test_an_evaluation_resumes_after_any_step(tmp_path, monkeypatch):
    """No attack runs twice, and the results are those of an evaluation that was not interrupted."""
    model = trained("tiny-natural")
    attacks = suite(attacks=("apgd-ce", "apgd-dlr"), version="dev", batch_size=4)
    calls, run = [], Suite.run
    monkeypatch.setattr(Suite, "run", lambda self, *args: calls.append(args[1]) or run(self, *args))
    path, epsilons = state_path(tmp_path, 0), (0.05, 0.0)
    whole = evaluated(model, attacks, epsilons, 6)
    uninterrupted = calls.copy()
    assert whole.progress.tolist() == [[3, 3], [3, 3]]
    for stop in range(1, 6):
        empty, interrupted = (PerImageResults.empty(6, (3, 16, 16), 4, 2, 2, 3) for _ in range(2))

        def save(interrupted=interrupted, stop=stop):
            interrupted.save(path, {"seed": 3})
            if interrupted.progress.sum() == stop:
                raise KeyboardInterrupt

        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            evaluated(model, attacks, epsilons, 6, interrupted, save)
        found = resume(tmp_path, {"seed": 3}, empty, ProcessGroup())
        assert found.progress.sum() == stop
        assert_same_results(evaluated(model, attacks, epsilons, 6, found), whole)
        assert calls == uninterrupted


def test_the_states_of_several_processes_are_merged(tmp_path):
    assert resume(tmp_path, {}, PerImageResults.empty(6, (3, 4, 4), 2, 1), ProcessGroup()) is None
    for rank in (0, 1, 12):
        results = PerImageResults.empty(6, (3, 4, 4), 2, 1)
        results.progress[0, rank % 3 if rank < 12 else 2] = 2
        results.save(state_path(tmp_path, rank), {})
    found = resume(tmp_path, {}, PerImageResults.empty(6, (3, 4, 4), 2, 1), ProcessGroup())
    assert found.progress.tolist() == [[2, 2, 2]]


def test_a_state_of_an_earlier_version_resumes(program, tmp_path, monkeypatch):
    """tests/data/old-evaluation: interrupted in the last of three chunks, after apgd-ce; none of it runs again."""
    flags = (
        "--checkpoint", DATA / "wrn-10-1-natural.pt", "--dataset", "eight", "--data-dir", OLD, "--mark", "old",
        "--version", "custom", "--attacks", "apgd-ce,apgd-dlr", "--batch-size", 3, "--epsilon", "0.02", "--epsilons", 0,
        "--device", "cpu",
    )  # fmt: skip
    folder = tmp_path / "Logs/old"
    folder.mkdir(parents=True)
    shutil.copy(OLD / "autoattack.state.npz", folder)
    before = np.load(OLD / "autoattack.state.npz")
    # The versions of the packages that wrote it, which are others here, are part of the fingerprint.
    versions = json.loads(str(before["fingerprint"]))["versions"]
    monkeypatch.setattr(summary, "package_versions", lambda suite: versions)
    steps, attack_chunk = [], attack_loop.attack_chunk

    def recorded(*args):
        for step in attack_chunk(*args):
            steps.append(step.name)
            yield step

    monkeypatch.setattr(attack_loop, "attack_chunk", recorded)
    status, _, err = program(*flags)
    assert status == 0, err
    assert steps == ["apgd-dlr"] + 3 * ["clean", "apgd-ce", "apgd-dlr"]  # at epsilon 0 nothing had run
    after = np.load(folder / "autoattack.npz")
    np.testing.assert_array_equal(after["clean_prediction"], before["clean_prediction"])
    known = before["broken_by"][0] != ""
    np.testing.assert_array_equal(after["broken_by"][known], before["broken_by"][0][known])
    assert set(after["broken_by"][~known]) <= {"", "apgd-dlr"}
    assert "resuming: 8 of 18 steps are finished" in (folder / "autoattack.log").read_text()
    assert not (folder / "autoattack.state.npz").exists()


def test_a_foreign_or_torn_state_is_refused_and_kept(program, checkpoint, tmp_path, monkeypatch):
    state = tmp_path / "Logs/some-run/autoattack.state.npz"
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.run.write_pages", _full_disk)
        status, out, err = program("--checkpoint", checkpoint, *QUICK)
    assert status == 1 and "No space left" in err and state.exists()
    finished = state.read_bytes()
    for flags, what in [
        (("--epsilon", "8/255"), "epsilon 0.02 there and 0.03137"),
        (("--seed", "2"), "seed 1 there and 2 here"),
        (("--batch-size", "3"), "batch_size 2 there and 3 here"),
        (("--n-examples", "5"), "n 6 there and 5 here"),
        (("--attacks", "apgd-dlr"), 'attacks ["apgd-ce"] there and ["apgd-dlr"] here'),
        (("--epsilons", "0"), "epsilons [0.02] there and [0.02, 0.0] here"),
        (("--precision", "bf16"), "precision fp32 there and bf16 here"),
        (("--plain",), "plain false there and true here"),
        (("--save-adv", tmp_path / "adv.npz"), "save_adv null there and true here"),
    ]:
        status, out, err = program("--checkpoint", checkpoint, *QUICK, *flags)
        assert (status, out) == (1, "")
        assert what in err and f"{state} is of another, unfinished evaluation" in err and "--mark" in err
        assert state.read_bytes() == finished
    state.write_bytes(finished[: len(finished) // 2])
    status, _, err = program("--checkpoint", checkpoint, *QUICK)
    assert status == 1 and err.startswith(f"error: {state} is damaged") and "delete it" in err and err.count("\n") == 1
    state.write_bytes(finished)
    assert program("--checkpoint", checkpoint, *QUICK)[0] == 0 and not state.exists()


def _full_disk(*args):
    raise OSError(28, "No space left on device")
