"""Checkpoints on disk: every form that loads, and every one that must not, with its sentence."""

import os
import pickle
import zipfile

import pytest
import torch

from models import create_model
from models.checkpoint import find_weights, load_network
from models.weights import infer_architecture, load_file, load_strictly
from models.wideresnet import WideResNet
from utils.errors import UserError
from utils.files import file_hash, save_atomically, write_atomically


@pytest.fixture(scope="module")
def model():
    return create_model("wrn-10-1", 10)


def same(state, model):
    expected = model.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def load(path, name="wrn-10-1", num_classes=10):
    fresh = create_model(name, num_classes)
    load_strictly(fresh, find_weights(load_file(path), path).state, path)
    return fresh


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {**state, **{f"sub_block1.{i}.weight": torch.zeros(3) for i in range(2)}},
        lambda state: {f"module.{k}": v for k, v in {**state, "sub_block1.layer.0.bn1.weight": torch.ones(2)}.items()},
        lambda state: {"state_dict": state, "epoch": 76},
        lambda state: {"format": "lbgat-training-state-1", "config": {"student": "wrn-10-1"}, "student": state},
    ],
    ids=["plain", "module", "sub_block1", "module+sub_block1", "state_dict", "ours"],
)
def test_loads_every_published_form(tmp_path, model, wrap, legacy):
    path = tmp_path / "weights.pt"
    torch.save(wrap(model.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    assert same(load(path).state_dict(), model)


@pytest.mark.parametrize("name", ["wrn-10-1", "wrn-16-2", "preactresnet18", "resnet18", "resnet18-guide"])
@pytest.mark.parametrize("num_classes", [10, 100])
def test_architecture_is_read_off_where_the_shapes_tell_it(name, num_classes):
    with torch.device("meta"):
        state = create_model(name, num_classes).state_dict()
    told = None if name in ("resnet18", "resnet18-guide") else name  # these two differ in strides alone
    assert infer_architecture(state) == (told, num_classes)


def test_strangers_have_no_architecture():
    assert infer_architecture({"a": torch.zeros(3)}) == (None, None)
    assert infer_architecture({"fc.weight": torch.zeros(3)}) == (None, None)


def test_other_architecture_names_what_is_missing_and_left_over(tmp_path, model):
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    with pytest.raises(UserError, match=r"another architecture.*missing .*layer\.1\.bn1.*left over nothing"):
        load(path, "wrn-16-1")
    with pytest.raises(UserError, match=r"missing bn1\.num_batches_tracked.*and \d+ more.*left over block1"):
        state = {name: tensor for name, tensor in model.state_dict().items() if name != "bn1.num_batches_tracked"}
        load_strictly(create_model("resnet18", 10), state, path)


def test_one_left_over_name_is_enough_to_refuse(tmp_path, model):
    path = tmp_path / "weights.pt"
    torch.save({**model.state_dict(), "block4.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"missing nothing; left over block4\.weight$"):
        load(path)


def test_other_class_count_and_width_name_the_shapes(tmp_path, model):
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    with pytest.raises(UserError, match=r"class count: fc\.weight \(10, 64\) instead of \(100, 64\)"):
        load(path, num_classes=100)
    torch.save(create_model("wrn-10-2", 10).state_dict(), path)
    with pytest.raises(UserError, match=r"width.* \(32, 16, 3, 3\) instead of \(48, 16, 3, 3\)"):
        load(path, "wrn-10-3")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("keep", [0, 1, 20, 60, 0.5, 0.999])
def test_truncated(tmp_path, model, legacy, keep):
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else keep])
    with pytest.raises(UserError, match=r"weights\.pt is (damaged, truncated or )?not a torch checkpoint: download"):
        load_file(path)


def test_truncated_anywhere_in_the_header(tmp_path):
    """Every break inside the pickled part of a legacy file: also in the middle of an instruction's argument."""
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(8, 8)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for keep in range(len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(UserError):
            load_file(path)


class Evil:
    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.mkdir, (self.trap,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "whole model"])
def test_code_in_a_pickle_is_never_run(tmp_path, form):
    path, trap = tmp_path / "weights.pt", tmp_path / "trap"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Evil(str(trap))))
    elif form == "whole model":
        torch.save(torch.nn.Linear(2, 2), path)
    else:
        torch.save({"a": Evil(str(trap))}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=r"more than weights .*never run here"):
        load_file(path)
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"hello world\n" * 9, b"<!DOCTYPE html><html>404</html>", bytes(range(256)) * 9])
def test_not_a_torch_file(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a torch checkpoint"):
        load_file(path)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(UserError, match=r"no checkpoint at|is a folder: pass a file in it"):
            load_file(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {1: torch.zeros(2)}, torch.zeros(2)], ids=str)
def test_no_state_dict_in_it(tmp_path, content):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match="does not hold a state dict"):
        find_weights(load_file(path), path)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "folder" / "file"
    save_atomically({"a": torch.ones(1)}, path)
    before = file_hash(path)

    def full_disk(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"could not write .*No space left"):
        write_atomically(path, full_disk)
    assert file_hash(path) == before
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_small_hostile_files_take_no_memory(tmp_path, model):
    """Expanded, shared and meta tensors: small on disk, large or nothing in memory; nothing is built for them."""
    path, state = tmp_path / "weights.pt", model.state_dict()
    one = torch.zeros(max(t.numel() for t in state.values()))
    expanded = {k: torch.zeros(1).expand(t.numel()).reshape(t.shape) if t.dim() else t for k, t in state.items()}
    shared = {k: one[: t.numel()].view(t.shape) if t.dim() else t for k, t in state.items()}
    for content in (expanded, shared):
        torch.save(content, path)
        with pytest.raises(UserError, match="holds fewer numbers than its shapes say"):
            load_network(load_file(path), path)
    with pytest.raises(UserError, match="no plain weights"):
        load_network({k: t.to("meta") for k, t in state.items()}, path)


def test_a_zip_that_is_larger_inside_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(1 << 24))
    with pytest.raises(UserError, match="is damaged, truncated or not a torch checkpoint"):
        load_file(path)


def test_a_network_larger_than_the_machine_is_refused(monkeypatch):
    monkeypatch.setattr("models._memory", lambda: 1 << 20)
    with pytest.raises(UserError, match="the weights of wrn-34-10 take 0 GiB, more than this machine's memory"):
        create_model("wrn-34-10", 10)


def test_comparing_sizes_first_draws_no_random_numbers():
    torch.manual_seed(3)
    first = create_model("wrn-10-1", 10).state_dict()
    torch.manual_seed(3)
    second = WideResNet(10, 1, 10).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
