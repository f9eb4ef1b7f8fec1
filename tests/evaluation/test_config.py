"""Defaults, command line and impossible settings of an evaluation; tests/engine/test_config.py has what is shared."""

import pytest

from evaluation.config import EvalConfig, parse_eval
from utils.errors import UserError


def evaluate(line=""):
    return parse_eval(line.split())


def test_evaluation_defaults():
    config = evaluate()
    assert config == EvalConfig()
    assert (config.version, config.epsilon, config.norm, config.n_examples) == ("standard", 0.031, "linf", 0)
    assert (config.dataset, config.student) == ("auto", "auto")


def test_published_evaluation_flags():
    config = evaluate("--model-path model.pt --widen_factor 20 --num_classes 10 --dataparallel True --epsilon 8.0")
    assert (config.checkpoint, config.student, config.dataset) == ("model.pt", "wrn-34-20", "cifar10")
    assert config.epsilon == 8 / 255
    assert evaluate("--dataparallel --widen_factor 10").student == "wrn-34-10"
    assert evaluate("--widen_factor 20 --student wrn-28-10").student == "wrn-28-10"


def test_impossible_evaluation_settings():
    for line, message in {
        "--batch-size 0": "--batch-size 0 must be at least 1",
        "--n-examples -1": "--n-examples -1 must be 0 or more",
        "--version custom": "--attacks goes with --version custom",
        "--attacks square": "--attacks goes with --version custom",
        "--version fast": "invalid choice: 'fast'",
    }.items():
        with pytest.raises(UserError) as caught:
            evaluate(line)
        assert message in str(caught.value)
