"""A small, fixed selection of ``python -m benchmarks.faults``: no traceback, no signal, no silent damage."""

import os
import random
import signal

import pytest

from benchmarks import fault_damage
from benchmarks.fault_files import KINDS, digest, prepare
from benchmarks.fault_lines import CONFIGS, random_line
from benchmarks.faults import GOOD, OUTCOMES, Counts, Ended, _copy, _read, in_process, limited
from engine.command_line import parse_train
from evaluation.config import parse_eval
from utils.errors import UserError

FAST = [name for name in KINDS if name not in ("last.pt, resumed", "evaluation state")]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "template"
    folder.mkdir()
    prepare(folder)
    return folder


@pytest.mark.parametrize("name", FAST)
def test_damaged_files_are_noticed(template, name):
    kind, case = KINDS[name], template.parent / "case"
    _copy(template, case, kind)
    expected = digest(kind.read(case))
    ways = [fault_damage.flip_a_bit] * 6 + [*fault_damage.DAMAGE.values()]
    for number, damage in enumerate(ways):
        damage(_copy(template, case, kind), random.Random(f"{name} {number}"))
        try:
            assert _read(case, kind, expected, whole=False) in GOOD
        except UserError as error:
            assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("program", CONFIGS)
def test_random_command_lines_are_parsed_or_one_sentence(program):
    parse = {"train_lbgat.py": parse_train, "eval_autoattack.py": parse_eval}[program]
    for seed in range(300):
        try:
            parse(random_line(CONFIGS[program], random.Random(seed)))
        except UserError as error:
            assert str(error)


def crash():
    raise ValueError("a defect")


def allocate():
    return "equal" if len(bytearray(b"x" * (600 << 20))) else ""


def test_the_program_tells_what_became_of_a_process():
    assert in_process(lambda: "equal").outcome == "equal"
    assert in_process(crash).outcome == "traceback"
    assert in_process(lambda: (_ for _ in ()).throw(UserError("so"))).outcome == "sentence"
    assert in_process(lambda: os.kill(os.getpid(), signal.SIGKILL)).outcome == "signal"
    assert limited(in_process(allocate), Ended("equal")).outcome == "memory"
    assert limited(Ended("equal", seconds=3.0), Ended("equal", seconds=0.5)).outcome == "hang"
    counts = Counts()
    counts.add("kind", "case", Ended("traceback"))
    assert [failure["outcome"] for failure in counts.failures] == ["traceback"] and set(GOOD) < set(OUTCOMES)
