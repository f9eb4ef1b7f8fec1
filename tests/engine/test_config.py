"""Defaults, command line and impossible settings of training; what both programs share."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from engine.command_line import parse_train
from engine.config import TrainConfig
from evaluation.config import EvalConfig, parse_eval
from losses import METHODS
from tests.helpers import ROOT
from utils.errors import UserError
from utils.options import flag, parse_epsilon


def train(line=""):
    return parse_train(line.split())


def test_defaults_are_the_published_recipe():
    config = train()
    assert config == TrainConfig()
    assert (config.method, config.parameters["beta"], config.student, config.guide) == (
        "lbgat",
        6.0,
        "wrn-34-10",
        "resnet18-guide",
    )
    assert (config.epochs, config.batch_size) == (100, 128)
    assert (config.lr, config.momentum, config.weight_decay) == (0.1, 0.9, 2e-4)
    assert (config.warmup_factor, config.decay_epochs) == (0.2, (76, 91))
    assert (config.norm, config.epsilon, config.step_size, config.num_steps) == ("linf", 0.031, 0.007, 10)
    assert (config.precision, config.limit_train, config.val_size, config.resume) == ("fp32", 0, 0, "auto")
    assert (config.dataset, config.device, config.log_dir, config.checkpoint_dir) == (
        "digits",
        "auto",
        "Logs",
        "checkpoints",
    )


VALUES = {
    "normalize": "cifar100",
    "method": "at",
    "dataset": "mine",
    "student": "resnet18",
    "device": "cpu",
    "mark": "my-run_1.2+x",
    "decay_epochs": (5, 6),
    "accumulate": 131,  # divides the batch size
    "decay_factors": (0.5, 0.25),
    "onecycle_up": 0.5,
    "save_freq": 1,
    "average_every": "step",
}
VALUES |= {"version": "custom", "epsilons": (0.0, 0.5), "export": ("robustbench", "out"), "compare": ("a", "b")}


def another_value(f, config):
    """A legal value of a field that is not its default."""
    if f.name in VALUES:
        return VALUES[f.name]
    if f.default is False:
        return True
    if "choices" in f.metadata:
        return next(choice for choice in f.metadata["choices"] if choice != f.default)
    if isinstance(f.default, float):
        return f.default / 2 + 0.125
    return f.default + 3 if isinstance(f.default, int) else "some"


@pytest.mark.parametrize(("parse", "config"), [(parse_train, TrainConfig), (parse_eval, EvalConfig)])
def test_every_field_has_a_flag(parse, config):
    left_out = ("parameters", "tensorboard", "plain")  # --plain does not go with --precision and --compile
    values = {f.name: another_value(f, config) for f in dataclasses.fields(config) if f.name not in left_out}
    argv = []
    for name, value in values.items():
        if value is True:
            argv.append(flag(name))
            continue
        words = value if isinstance(value, tuple) else (value,)
        argv += [flag(name), *words] if name in ("export", "compare") else [flag(name), ",".join(map(str, words))]
    assert all(value != getattr(config(), name) for name, value in values.items())
    assert parse(argv) == config(**values)


@pytest.mark.parametrize(("parse", "config"), [(parse_train, TrainConfig), (parse_eval, EvalConfig)])
def test_help_names_every_flag_with_its_default(parse, config, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    text, joined = " ".join(shown.split()), "".join(shown.split())  # lines are broken at hyphens too
    for f in dataclasses.fields(config):
        if f.name == "parameters":
            continue
        assert flag(f.name) in text and "".join(f.metadata["help"].split()) in joined
        if isinstance(f.default, (int, float)):
            assert f"(default: {f.default})" in text
    own = [p for method in METHODS.values() for p in method.parameters] if config is TrainConfig else []
    listed = [f for f in dataclasses.fields(config) if f.name != "parameters"]
    assert text.count("(default:") == len(listed) + len(own)


# -- published flags -------------------------------------------------------------------------------------------------


def test_published_training_flags():
    line = (
        "-mark my_run -teacher_model ResNet18_cifar -num_classes 100 --wd 5e-4 --no-cuda --log-interval 100 "
        "--model-dir out -s 5 --batch-size 64 --epochs 76 --lr 0.05 --momentum 0.8 --epsilon 0.031 --num-steps 7 "
        "--step-size 0.005 --beta 3.0 --seed 9"
    )
    config = train(line)
    assert (config.mark, config.guide, config.dataset, config.weight_decay) == (
        "my_run",
        "resnet18-guide",
        "cifar100",
        5e-4,
    )
    assert (config.device, config.log_interval, config.checkpoint_dir, config.save_freq) == ("cpu", 100, "out", 5)
    assert (config.batch_size, config.epochs, config.lr, config.momentum) == (64, 76, 0.05, 0.8)
    assert (config.num_steps, config.step_size, config.parameters["beta"], config.seed) == (7, 0.005, 3.0, 9)


@pytest.mark.parametrize(
    ("line", "dataset"),
    [
        ("-num_classes 10", "cifar10"),
        ("-num_classes 100", "cifar100"),
        ("-num_classes 10 --dataset digits", "digits"),
        ("-num_classes 100 --dataset mine", "mine"),
    ],
)
def test_num_classes_chooses_the_data_set(line, dataset):
    assert train(line).dataset == dataset
    assert parse_eval(line.replace("-num", "--num").split()).dataset == dataset


@pytest.mark.parametrize("line", ["-num_classes 10 --dataset cifar100", "-num_classes 100 --dataset digits"])
def test_num_classes_contradicts_the_data_set(line):
    with pytest.raises(UserError, match=r"does not have 10+ classes"):
        train(line)


# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.031", 0.031),
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("8.0", 8 / 255),  # as the published evaluation spells it
        ("8", 8 / 255),
        ("0", 0.0),
        ("1", 1.0),
        ("3e-2", 0.03),
        (0.5, 0.5),
        (8.0, 8 / 255),
    ],
)
def test_epsilon(text, value):
    assert parse_epsilon(text) == value
    assert TrainConfig(epsilon=text).epsilon == value  # also without a command line
    assert EvalConfig(epsilon=text).epsilon == value


BAD_EPSILON = ["-0.1", "-1/255", "1.01", "255", "8.5", "abc", "", "nan", "inf", "8/0", "1e400", "8/255/2", "0,031"]


@pytest.mark.parametrize("text", BAD_EPSILON)
def test_impossible_epsilon(text):
    for parse in (parse_train, parse_eval):
        with pytest.raises(UserError, match=r"^epsilon .*(is not a|is above 1|is too large).*write (0.031 or )?8/255"):
            parse([f"--epsilon={text}"])
    with pytest.raises(UserError, match=r"^step size .*(is not a|is above 1|is too large)"):
        parse_train([f"--step-size={text}"])


def test_step_size_is_read_like_epsilon():
    assert train("--step-size 2/255").step_size == 2 / 255
    with pytest.raises(UserError, match=r"--step-size 0\.0 must be above 0"):
        train("--step-size 0")


@pytest.mark.parametrize(
    ("text", "value"), [("76,91", (76, 91)), ("", ()), ("100, 150", (100, 150)), ("75,90,100", (75, 90, 100))]
)
def test_decay_epochs(text, value):
    assert parse_train(["--decay-epochs", text]).decay_epochs == value


IMPOSSIBLE = {
    "--epochs 0": "--epochs 0 must be at least 1",
    "--epochs 1.5": "--epochs: invalid int value: '1.5'",
    "--batch-size 0": "--batch-size 0 must be at least 1",
    "--batch-size -3": "--batch-size -3 must be at least 1",
    "--batch-size many": "--batch-size: invalid int value: 'many'",
    "--num-steps 0": "--num-steps 0 must be at least 1",
    "--eval-size 0": "--eval-size 0 must be at least 1",
    "--save-freq 0": "--save-freq 0 must be at least 1",
    "--log-interval 0": "--log-interval 0 must be at least 1",
    "--beta -1": "--beta -1 must be 0 or more",
    "--beta nan": "--beta nan must be 0 or more",
    "--weight-decay=-1e-4": "--weight-decay -0.0001 must be 0 or more",
    "--limit-train -1": "--limit-train -1 must be 0 or more",
    "--val-size -1": "--val-size -1 must be 0 or more",
    "--max-minutes -1": "--max-minutes -1.0 must be 0 or more",
    "--max-minutes inf": "--max-minutes inf must be 0 or more",
    "--lr 0": "--lr 0.0 must be above 0",
    "--lr nan": "--lr nan must be above 0",
    "--lr inf": "--lr inf must be above 0",
    "--warmup-factor 0": "--warmup-factor 0.0 must be above 0",
    "--momentum 1": "--momentum 1.0 must be in",
    "--momentum -0.1": "--momentum -0.1 must be in",
    "--seed -1": "--seed -1 must be a non-negative integer",
    "--seed 9223372036854775808": "--seed 9223372036854775808 must be",
    "--device gpu": "--device gpu: choose auto, cpu, cuda or cuda:N",
    "--norm l1": "--norm: invalid choice: 'l1'",
    "--precision fp16": "--precision: invalid choice: 'fp16'",
    "--mark a/b": "--mark 'a/b' names a folder",
    "--mark ..": "--mark '..' names a folder",
    "--decay-epochs 76;91": "'76;91' is not a list of epochs: write 76,91",
    "--decay-epochs 0,5": "--decay-epochs 0,5: at most 20 epochs, from 1 on",
    "-num_classes 7": "-num_classes 7: CIFAR has 10 or 100",
    "--learning-rate 1": "unrecognized arguments: --learning-rate 1",
    "--batch 3": "unrecognized arguments: --batch 3",  # no abbreviations
    "--lr": "--lr: expected one argument",
    "--awp-gamma -0.005": "--awp-gamma -0.005 must be in [0, 1)",
    "--awp-gamma nan": "--awp-gamma nan must be in [0, 1)",
    "--awp-start-epoch 0": "--awp-start-epoch 0 must be at least 1",
    "--method ikl --alpha -1": "--alpha -1 must be 0 or more",
    "--method gkl --gamma -0.1": "--gamma -0.1 must be 0 or more",
    "--method gkl --attack-beta -1": "--attack-beta -1 must be 0 or more",
    "--method ikl --temperature 0": "--temperature 0 must be above 0",
    "--label-smoothing 1": "--label-smoothing 1.0 must be in [0, 1)",
    "--average-tau 1": "--average-tau 1.0 must be in [0, 1)",
    "--average-every year": "--average-every: invalid choice",
    "--schedule linear": "--schedule: invalid choice",
    "--epsilon-ramp cosine": "--epsilon-ramp: invalid choice",
    "--step-ratio -0.5": "--step-ratio -0.5 must be 0 or more",
    "--average-warmup 0.5": "--average-warmup and --average-ramp need an average: add --average-every step or epoch",
    "--patience -1": "--patience -1 must be 0 or more",
    "--patience 5": "--patience 5 needs held-out images to judge by: add --val-size N",
}


@pytest.mark.parametrize("line", IMPOSSIBLE)
def test_impossible_training_settings(line):
    with pytest.raises(UserError) as caught:
        train(line)
    assert IMPOSSIBLE[line] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm": "l1"}, "--norm l1"),
        ({"precision": "fp16"}, "--precision fp16"),
        ({"epsilon": math.nan}, "epsilon 'nan' is not a number"),
        ({"epochs": 2.5}, "--epochs '2.5' must be a whole number"),
        ({"epochs": True}, "--epochs 'True' must be a whole number"),
        ({"lr": "fast"}, "--lr 'fast' must be a number"),
        ({"nesterov": 1}, "--nesterov '1' must be True or False"),
        ({"student": None}, "--student 'None' must be a text"),
        ({"decay_epochs": 76}, "--decay-epochs '76' must be a list"),
        ({"decay_epochs": np.array(5)}, "--decay-epochs '5' must be a list"),
        ({"decay_epochs": [None]}, r"--decay-epochs '\[None\]' must be a list of numbers"),
        ({"lr": 10**400}, "--lr is too large"),
    ],
)
def test_impossible_settings_without_a_command_line(values, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**values)


def test_a_program_may_pass_paths_lists_and_numbers_of_numpy():
    values = {"data_dir": Path("sets"), "epochs": np.int64(4), "lr": 1, "decay_epochs": np.array([2, 3]), "mark": "m"}
    config = TrainConfig(**values)
    assert config == TrainConfig(data_dir="sets", epochs=4, lr=1.0, decay_epochs=(2, 3), mark="m")
    for decays in ("1/2,3/4", ["1/2", "3/4"], ["3", 4]):
        assert TrainConfig(epochs=4, decay_epochs=decays).decay_epochs == (3, 4)
    assert TrainConfig(nesterov=np.True_, guide="ResNet18_cifar", student="WideResNet-34-10") == TrainConfig(
        nesterov=True
    )
    json.dumps(config.as_dict())


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("--dataset cifar100 --beta 0", "lbgat0-cifar100-wrn34-10"),
        ("--dataset cifar10 --student wrn-34-20", "lbgat6-cifar10-wrn34-20"),
        ("--method trades --dataset cifar10 --beta 1.5", "trades1.5-cifar10-wrn34-10"),
        ("--method at --dataset cifar10 --student resnet18", "at-cifar10-resnet18"),
        ("--mark mine --dataset cifar10", "mine"),
        ("--method mart --dataset cifar10 --student resnet18 --beta 5", "mart5-cifar10-resnet18"),
        ("--method ikl --dataset cifar100 --beta 20", "ikl-a4b20t4-cifar100-wrn34-10"),
        ("--method gkl --dataset cifar100 --beta 20 --temperature 1", "gkl-a4b20g0.4t1-cifar100-wrn34-10"),
        ("--method dkl --dataset cifar10", "dkl-a4b20-cifar10-wrn34-10"),
        ("--method lbgat --dataset cifar100 --awp-gamma 0.005", "lbgat6-awp-cifar100-wrn34-10"),
        ("--method at --dataset cifar10 --awp-gamma 0.01", "at-awp-cifar10-wrn34-10"),
    ],
)
def test_run_name(line, name):
    assert train(line).run_name == name


def test_impossible_choice_without_a_command_line():
    with pytest.raises(UserError, match="--schedule linear: choose multistep or piecewise or cosine"):
        TrainConfig(schedule="linear")


def test_help_says_each_method_with_its_flags_and_source(capsys):
    with pytest.raises(SystemExit):
        parse_train(["--help"])
    shown = capsys.readouterr().out
    for name, method in METHODS.items():
        assert f"\n  {name}\n" in shown and method.source in shown
        assert re.search(rf"\n  {name}\n(    [^\n]+\n)*?    [^\n]+\.\n    (--|{re.escape(method.source[:9])})", shown)
        for p in method.parameters:
            assert f"    {flag(p.name)} {p.name.upper()}: {p.help}; {p.range} (default: {p.default:g})\n" in shown


def test_defaults_of_a_parameter_are_the_methods():
    assert (train("--method ikl").parameters["beta"], train("--method lbgat").parameters["beta"]) == (20.0, 6.0)
    assert train("--method gkl").parameters == {
        "alpha": 4,
        "beta": 20,
        "gamma": 0.4,
        "temperature": 1,
        "attack_beta": 1,
    }
    assert train("--method at").parameters == {}


def test_a_parameter_of_another_method_is_refused():
    with pytest.raises(UserError, match="--gamma is a parameter of gkl, backward-smoothing, hat, not of lbgat"):
        train("--gamma 0.4")
    with pytest.raises(UserError, match="AT has no parameter beta: it has none"):
        TrainConfig.create(method="at", beta=6.0)


def test_a_configuration_survives_its_dictionary():
    config = train("--method gkl --gamma 0.2 --epsilon 8/255 --decay-epochs 5,7 --mark m")
    assert config.as_dict()["gamma"] == 0.2
    assert TrainConfig.create(**config.as_dict()) == config


def test_decays_as_parts_of_the_run():
    """Of 100 epochs they are the published ones."""
    assert train("--decay-epochs 3/4,9/10").decay_epochs == (76, 91)
    assert train("--epochs 30 --decay-epochs 3/4,9/10").decay_epochs == (23, 28)


def test_an_l2_radius_has_no_upper_bound():
    assert train("--norm l2 --epsilon 3 --step-size 1.5").epsilon == 3.0
    assert train("--norm l2 --epsilon 8").epsilon == 8.0
    with pytest.raises(UserError, match=r"epsilon 4 is above 1, .*, or 4/255 for 4 of 255 levels"):
        train("--epsilon 4")


def test_no_method_takes_the_name_of_a_setting():
    """Its flag would be that of the setting."""
    settings = {f.name for f in dataclasses.fields(TrainConfig)}
    assert not settings & {p.name for method in METHODS.values() for p in method.parameters}


# -- a run's config.json taken back ------------------------------------------------------------------------------------


def write_config(path, **changes):
    config = TrainConfig.create(method="mart", beta=5.0, epochs=7, decay_epochs=(3, 5), epsilon=8 / 255, seed=4)
    content = (
        json.loads(json.dumps(config.as_dict())) | {"hardware": "a machine", "threads": 2, "commit": None} | changes
    )
    path.write_text(json.dumps(content))
    return config


def test_config_json_is_taken_back(tmp_path):
    path = tmp_path / "config.json"
    config = write_config(path)
    assert parse_train(["--config", str(path)]) == config
    write_config(path, resume="none")  # how that run was started
    assert parse_train(["--config", str(path)]).resume == "auto"
    changed = parse_train(["--config", str(path), "--seed", "9", "--beta", "6"])
    assert changed == dataclasses.replace(config, seed=9, parameters={**config.parameters, "beta": 6.0})


def test_every_config_of_a_measured_run_is_taken_back():
    """Also those of earlier versions, which wrote the parameters of all methods."""
    paths = sorted((ROOT / "results").rglob("config.json"))
    for path in paths:
        saved, config = json.loads(path.read_text()), parse_train(["--config", str(path)]).as_dict()
        assert {name for name in config if name in saved and list_(config[name]) != saved[name]} == set(), path
    assert len(paths) > 10 and parse_train(["--config", str(paths[0]), "--method", "at"]).parameters == {}


def list_(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": "many"}, r"epochs is 'many', not of the type of --epochs"),
        ({"epochs": True}, r"epochs is 'True', not of the type"),
        ({"no_such": 1.0}, "no_such"),
        ({"student": "my_net.py:MyNet"}, r"whose code runs only if you name it: add --student my_net\.py:MyNet"),
    ],
)
def test_other_config_files_are_refused(tmp_path, changes, sentence):
    path = tmp_path / "config.json"
    write_config(path, **changes)
    with pytest.raises(UserError, match=sentence):
        parse_train(["--config", str(path)])


@pytest.mark.parametrize("content", [None, "", "[1]", "{"])
def test_what_is_no_config_file(tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"cannot be read .*: pass the config\.json of a run"):
        parse_train(["--config", str(path)])
