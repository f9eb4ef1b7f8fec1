"""Every form of checkpoint that people have: what is chosen in it, and that it is loaded as a whole or not at all.

docs/evaluation.md has the same table.
"""

import re

import pytest
import torch

from models import create_model, load
from models.checkpoint import load_network
from models.weights import load_file
from tests.helpers import NET_SOURCE, ROOT
from utils.errors import UserError

TIED = """
from torch import nn

class Tied(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.last = nn.Linear(num_classes, num_classes), nn.Linear(num_classes, num_classes)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x.flatten(1)[:, : self.first.in_features]))
"""
MEAN, STD = torch.tensor([0.5, 0.25, 0.125]).view(1, 3, 1, 1), torch.tensor([0.25, 0.5, 0.125]).view(1, 3, 1, 1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("wrn-10-1", 10).eval()


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def half(state):
    return {name: t.half() if t.is_floating_point() else t for name, t in state.items()}


def uncounted(state):
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name}


# As the form is called on the page, how a file of it is made, and what the log says. A file that holds a decoy beside
# the weights is loaded wrongly if the decoy is.
FORMS = {
    "a plain state dict": (lambda s, decoy: s, "weights as named"),
    "under `state_dict`": (lambda s, decoy: {"state_dict": s, "epoch": 7}, "weights under 'state_dict'"),
    "under `model_state_dict`": (lambda s, decoy: {"model_state_dict": s}, "weights under 'model_state_dict'"),
    "under `model`": (lambda s, decoy: {"model": s, "optimizer": {}}, "weights under 'model'"),
    "under `net`": (lambda s, decoy: {"net": s, "acc": 50.0}, "weights under 'net'"),
    "under `student`, beside a guide": (lambda s, decoy: {"student": s, "guide": decoy}, "weights under 'student'"),
    "under `ema`, beside `model`": (lambda s, decoy: {"model": decoy, "ema": s}, "weights under 'ema' (not model)"),
    "under `state_dict_ema`, beside `state_dict`": (
        lambda s, decoy: {"state_dict": decoy, "state_dict_ema": s},
        "weights under 'state_dict_ema' (not state_dict)",
    ),
    "under `model_ema`, of PyTorch's `AveragedModel`": (
        lambda s, decoy: {"model": decoy, "model_ema": {"n_averaged": torch.tensor(9), **prefixed(s, "module.")}},
        "weights under 'model_ema' (not model); prefix 'module.' removed; the count 'n_averaged'",
    ),
    "nested, such as `model` in `checkpoint['state_dict']`": (
        lambda s, decoy: {"state_dict": {"model": s, "epoch": 3}},
        "weights under 'state_dict'; weights under 'model'",
    ),
    "prefix `module.`": (lambda s, decoy: prefixed(s, "module."), "prefix 'module.' removed"),
    "prefix `_orig_mod.`": (lambda s, decoy: prefixed(s, "_orig_mod."), "prefix '_orig_mod.' removed"),
    "prefixes `module._orig_mod.`, or the reverse": (
        lambda s, decoy: prefixed(s, "_orig_mod.module."),
        "prefix '_orig_mod.' removed; prefix 'module.' removed",
    ),
    "unused group `sub_block1.*`": (
        lambda s, decoy: {**s, "sub_block1.layer.0.bn1.weight": torch.ones(2)},
        "the unused group 'sub_block1' of the published files dropped",
    ),
    "without `num_batches_tracked`": (
        lambda s, decoy: uncounted(s),
        "the batch counts of BatchNorm, which the file lacks, set to 0",
    ),
    "half precision": (lambda s, decoy: half(s), "float16 converted to float32"),
    "a `.safetensors` file": (lambda s, decoy: s, "weights as named"),
    "buffers `mu` and `sigma`": (lambda s, decoy: {**s, "mu": MEAN, "sigma": STD}, "from 'mu' and 'sigma'"),
    "buffers `mean` and `std`": (lambda s, decoy: {"mean": MEAN.flatten(), "std": STD.flatten(), **s}, "from 'mean'"),
    "`normalize.mean`, `normalize.std` and `model.*`": (
        lambda s, decoy: {"normalize.mean": MEAN, "normalize.std": STD, **prefixed(s, "model.")},
        "from 'normalize.mean' and 'normalize.std'; prefix 'model.' removed",
    ),
    "`0.mean`, `0.std` and `1.*`, of a Sequential": (
        lambda s, decoy: {"0.mean": MEAN, "0.std": STD, **prefixed(s, "1.")},
        "from '0.mean' and '0.std'; prefix '1.' removed",
    ),
    "`model.*`, as of Lightning": (lambda s, decoy: {"state_dict": prefixed(s, "model.")}, "prefix 'model.' removed"),
}


@pytest.mark.parametrize("form", FORMS)
def test_form(tmp_path, model, form):
    make, note = FORMS[form]
    decoy = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    content = make(model.state_dict(), decoy)
    path = tmp_path / "weights.pt"
    if "safetensors" in form:
        path = path.with_suffix(".safetensors")
        pytest.importorskip("safetensors.torch").save_file(content, path)
    else:
        torch.save(content, path)
    loaded = load_network(load_file(path), path)
    x = torch.rand(2, 3, 16, 16)
    expected = half(model.state_dict()) if form == "half precision" else model.state_dict()
    plain = create_model("wrn-10-1", 10).eval()
    plain.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in expected.items()})
    normalized = any(key in form for key in ("mu`", "mean`"))
    with torch.no_grad():
        logits = plain((x - MEAN) / STD if normalized else x)
        assert torch.equal(loaded.model.eval()(x), logits) and torch.equal(load(path)(x), logits)
    assert loaded.name == "wrn-10-1" and note in "; ".join(loaded.notes)
    assert loaded.normalize == ("0.5,0.25,0.125/0.25,0.5,0.125" if normalized else "none")


# What is refused: how the file is made, and the sentence.
REFUSED = {
    "an entry missing": (
        lambda s: dict(list(s.items())[1:]),
        r"another architecture.*missing conv1\.weight; left over n",
    ),
    "an entry too many": (lambda s: {**s, "extra": torch.ones(1)}, "missing nothing; left over extra$"),
    "some batch counts missing": (
        lambda s: {k: v for k, v in s.items() if k != "bn1.num_batches_tracked"},
        r"missing bn1\.num_batches_tracked",
    ),
    "weights with and without `module.`": (lambda s: {**s, **prefixed(s, "module.")}, "both with and without the pre"),
    "`mean` and `std` of one channel": (lambda s: {**s, "mean": torch.ones(1), "std": torch.ones(1)}, "three channels"),
    "`mean` without `std`": (lambda s: {**s, "mean": MEAN}, "left over mean$"),
    "an optimizer alone": (
        lambda s: {"optimizer": {"lr": 1.0}},
        r"no.* state dict.* under ema, .* but optimi",
    ),
    "a TorchScript file": (
        lambda s: torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)),
        r"is a TorchScript program, which is never run here: save the state_dict\(\) of the network",
    ),
    "a pickled network": (lambda s: torch.nn.Linear(2, 2), "more than weights .*never run here"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("form", REFUSED)
def test_refused_form(tmp_path, model, form):
    make, sentence = REFUSED[form]
    path = tmp_path / "weights.pt"
    save = torch.jit.save if "TorchScript" in form else torch.save
    save(make(model.state_dict()), path)
    with pytest.raises(UserError, match=sentence):
        load(path)


def test_a_safetensors_file_is_known_by_its_header(tmp_path, model):
    path = tmp_path / "weights.pt"
    pytest.importorskip("safetensors.torch").save_file(model.state_dict(), path)
    assert load(path).state_dict().keys() == model.state_dict().keys()


def test_weights_that_a_network_ties_are_stored_once(tmp_path):
    (tmp_path / "tied.py").write_text(TIED)
    torch.manual_seed(0)
    network, x = create_model(f"{tmp_path}/tied.py:Tied", 4).eval(), torch.rand(2, 3, 2, 2)
    state = network.state_dict()
    for name, content in {"shared": state, "copies": {k: t.clone() for k, t in state.items()}}.items():
        torch.save(content, path := tmp_path / f"{name}.pt")
        assert torch.equal(load(path, f"{tmp_path}/tied.py:Tied")(x), network(x))
    torch.save(
        {k: state["first.weight"][:1].clone().expand(4, 4) if t.dim() == 2 else t for k, t in state.items()}, path
    )
    with pytest.raises(UserError, match="holds fewer numbers than its shapes say"):
        load(path, f"{tmp_path}/tied.py:Tied")


def test_the_page_has_the_same_table():
    rows = re.findall(r"^\| (.*?) +\| ", (ROOT / "docs" / "evaluation.md").read_text(), re.MULTILINE)
    assert not [form for form in [*FORMS, *REFUSED] if form not in rows] and len(FORMS) >= 12


def test_without_the_package_a_safetensors_file_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="needs the package safetensors: pip install safetensors"):
        load(path)


def test_a_damaged_safetensors_file(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"12345678{")
    with pytest.raises(UserError, match="damaged, truncated or no safetensors file"):
        load(path)


def test_normalisation_that_is_asked_for(tmp_path, model):
    path, x = tmp_path / "weights.pt", torch.rand(2, 3, 16, 16)
    torch.save(model.state_dict(), path)
    loaded = load_network(load_file(path), path, normalize="cifar10")
    with torch.no_grad():
        assert torch.equal(loaded.model.eval()(x), load(path, normalize="cifar10")(x))
        assert not torch.equal(loaded.model(x), model(x)) and loaded.normalize == "cifar10"
    torch.save({**model.state_dict(), "mu": MEAN, "sigma": STD}, path)
    with pytest.raises(UserError, match=r"its own normalisation 0\.5,0\.25,0\.125/.*: leave out --normalize"):
        load(path, normalize="none")
    assert load(path, normalize="0.5,0.25,0.125/0.25,0.5,0.125")


def test_published_preactresnet18_is_recognised_with_its_normalisation():
    with torch.device("meta"):
        state = create_model("preactresnet18", 10).state_dict()
    state = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}
    loaded = load_network({**state, "mu": MEAN, "sigma": STD}, "rice2020.pt")
    assert (loaded.name, loaded.normalize) == ("preactresnet18", "0.5,0.25,0.125/0.25,0.5,0.125")


def test_a_swish_network_with_its_mean_and_std_normalises_once():
    torch.manual_seed(0)
    net, x = create_model("WideResNet-10-1-swish", 10).eval(), torch.rand(2, 3, 16, 16)
    torch.nn.init.normal_(net.logits.weight)
    mean, std = net.mean.clone(), net.std.clone()
    loaded = load_network({**net.state_dict(), "mean": mean, "std": std}, "hat.pt")
    assert (loaded.name, loaded.normalize) == ("wrn-10-1-swish", "none")
    assert loaded.notes[-1] == "which the network does by itself"
    with torch.no_grad():
        assert torch.equal(loaded.model.eval()(x), net(x)) and net(x).std() > 0
    with pytest.raises(UserError, match="a Swish network normalises the images by itself with another"):
        load_network({**net.state_dict(), "mean": mean, "std": std / 2}, "hat.pt")


def test_code_runs_only_if_the_user_names_it(tmp_path):
    source, path = tmp_path / "my_net.py", tmp_path / "weights.pt"
    source.write_text(NET_SOURCE)
    name = f"{source}:MyNet"
    net = create_model(name, 7).eval()
    torch.save({"config": {"student": name}, "student": net.state_dict()}, path)
    with pytest.raises(UserError, match=r"whose code runs only if you name it: add --student .*my_net\.py:MyNet "):
        load(path)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load(path, name)(x), net(x))  # seven classes: the rows of its last matrix
    torch.save({"config": {"student": name, "sources": {name: "0" * 64}}, "student": net.state_dict()}, path)
    with pytest.raises(UserError, match=r"another version of .*my_net\.py:MyNet \(SHA-256 000000000000 then"):
        load(path, name)


def test_buffers_that_a_users_network_has_itself_stay_in_it(tmp_path):
    source, path = tmp_path / "own.py", tmp_path / "weights.pt"
    source.write_text(
        NET_SOURCE.replace("super().__init__()", "super().__init__(); self.register_buffer('mean', None)\n")
        + "\nclass Own(MyNet):\n    def __init__(self, num_classes):\n"
        "        super().__init__(num_classes)\n"
        "        import torch\n"
        "        self.register_buffer('mean', torch.zeros(3)); self.register_buffer('std', torch.ones(3))\n"
    )
    name = f"{source}:Own"
    torch.save(create_model(name, 10).state_dict(), path)
    assert load_network(load_file(path), path, name).normalize == "none"


OWN_NAMES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.module = nn.Linear(3, 64)
        self.fc = nn.Linear(64, 64)
        self.auto = nn.Sequential(nn.Linear(64, num_classes))
        self.register_buffer("mean", torch.tensor(0.5))
        self.register_buffer("std", torch.tensor(2.0))

    def forward(self, x):
        return self.auto(self.fc(self.module((x.mean((2, 3)) - self.mean) / self.std)))
"""


def test_names_of_a_users_network_mean_what_they_mean_there(tmp_path):
    (tmp_path / "own.py").write_text(OWN_NAMES)
    name, path, x = f"{tmp_path}/own.py:Net", tmp_path / "own.pt", torch.rand(2, 3, 8, 8)
    net = create_model(name, 7).eval()
    torch.save({"state_dict": net.state_dict()}, path)
    assert torch.equal(load(path, name, num_classes=7)(x), net(x))


@pytest.mark.parametrize("updates", [0, -1, torch.tensor([1, 2]), "many"])
def test_an_average_counts_where_it_has_updates(tmp_path, model, updates):
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    path = tmp_path / "last.pt"
    torch.save({"student": model.state_dict(), "average": {"updates": updates, "weights": other}}, path)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load(path)(x), model(x))


def test_a_huge_mean_is_refused_before_it_is_read(tmp_path, model):
    path = tmp_path / "huge.pt"
    huge = {"mean": torch.zeros(1).expand(10**9), "std": torch.ones(1).expand(10**9)}
    torch.save({**model.state_dict(), **huge}, path)
    with pytest.raises(UserError, match="are no mean and standard deviation of three channels"):
        load(path)


def test_a_swish_network_is_not_normalised_twice(tmp_path):
    with pytest.raises(UserError, match="wrn-10-1-swish normalises the images by itself: leave out --normalize"):
        create_model("wrn-10-1-swish", 10, "cifar10")


@pytest.mark.parametrize("beside", [{"normalize": None}, {"std": 0.3}, {"normalization": False}])
def test_numbers_beside_the_weights_are_no_normalisation(tmp_path, model, beside):
    torch.save({"state_dict": model.state_dict(), **beside}, tmp_path / "a.pt")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load(tmp_path / "a.pt")(x), model(x))


def test_a_normalisation_beside_the_weights_is_not_left_out(tmp_path, model):
    torch.save({"state_dict": model.state_dict(), "mean": [0.5] * 3, "std": [0.25] * 3}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt holds 'mean' beside its weights"):
        load(tmp_path / "a.pt")
