"""The numbers behind the pictures of networks, and the one command that draws them."""

import pytest
import torch

from models import create_model
from report.figures import classes_on_plane, load_named, main, margins, plane
from tests.helpers import ROOT, trained
from utils.errors import UserError

SHIPPED = ROOT / "checkpoints/quickstart-digits.pt"


def test_margins():
    logits = torch.tensor([[3.0, 1.0, 2.5], [3.0, 1.0, 2.5], [-1.0, -1.0, -7.0]])
    found = margins(torch.nn.Identity(), logits, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found, torch.tensor([0.5, -2.0, -6.0]))


def test_the_plane_goes_through_the_three_images():
    a, b, c = torch.rand(3, 3, 4, 4, dtype=torch.float64)
    u, v = plane(a, b, c)
    gram = torch.stack([(p * q).sum() for p in (u, v) for q in (u, v)])
    torch.testing.assert_close(gram, torch.tensor([1.0, 0, 0, 1], dtype=torch.float64), atol=1e-12, rtol=0)
    for image in (b, c):
        rebuilt = a + ((image - a) * u).sum() * u + ((image - a) * v).sum() * v
        torch.testing.assert_close(rebuilt, image)
    with pytest.raises(UserError, match="does not leave the line"):
        plane(a, b, a + 0.5 * (b - a))


def test_classes_on_the_plane_are_those_of_its_points():
    torch.manual_seed(0)
    model, (a, b, c) = trained("tiny-natural"), torch.rand(3, 3, 16, 16)
    u, v = plane(a, b, c)
    horizontal, vertical = torch.linspace(-1, 4, 5), torch.linspace(-2, 2, 3)
    found = classes_on_plane(model, a, u, v, horizontal, vertical)
    expected = [[model((a + h * u + w * v)[None]).argmax().item() for h in horizontal] for w in vertical]
    assert found.tolist() == expected and found.unique().numel() > 1


def test_one_command_draws_three_pictures(tmp_path, capsys):
    torch.manual_seed(0)
    guide, path = create_model("wrn-10-1", 10, "cifar10"), tmp_path / "last.pt"
    content = torch.load(SHIPPED, weights_only=True)
    config = {"student": "wrn-10-1", "guide": "wrn-10-1", "dataset": "digits", "normalize": "cifar10"}
    torch.save({"config": config, "student": content["student"], "guide": guide.state_dict()}, path)
    flags = ["--epsilon", "0.1", "--n-examples", "12", "--out", str(tmp_path / "figures")]
    main([f"student={path}", f"guide={path}:guide", *flags])
    assert "pictures: " in capsys.readouterr().out
    for name in ("margins", "boundaries", "perturbations"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(load_named(f"g={path}:guide")[1](x), guide.eval()(x))
    torch.save({"state_dict": guide.state_dict()}, path)
    with pytest.raises(UserError, match="hundred is of 100 classes and digits has 10: pass --dataset"):
        torch.save(create_model("wrn-10-1", 100).state_dict(), tmp_path / "hundred.pt")
        main([f"hundred={tmp_path / 'hundred.pt'}", "--dataset", "digits"])
    with pytest.raises(UserError, match="the first checkpoint does not say what it was trained on: add --dataset"):
        main([f"student={path}"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a.pt"], "write NAME=CHECKPOINT"),
        ([f"a={SHIPPED}:guide"], "holds no guide"),
        ([f"a={SHIPPED}", "--images", "0,400"], "two numbers below 360"),
        ([f"a={SHIPPED}", "--images", "1,1"], "two numbers below 360"),
        ([f"a={SHIPPED}", "--images=-1,0"], "two numbers below 360"),
        ([f"a={SHIPPED}", f"a={SHIPPED}"], "two networks have one name"),
    ],
)
def test_wrong_words_get_a_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence):
        main([*words, "--dataset", "digits"])


def test_a_guide_that_only_the_file_names_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('this ran')")
    path = tmp_path / "last.pt"
    for config in ({"guide": f"{tmp_path}/evil.py:Net"}, {}, None):
        torch.save({"config": config, "guide": create_model("wrn-10-1", 10).state_dict()}, path)
        with pytest.raises(UserError, match="does not name a guide of this project, and code that a file"):
            load_named(f"a={path}:guide")


def test_a_network_of_ones_own_is_drawn_if_it_is_named(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from models import create_model\nnet = lambda num_classes: create_model('wrn-10-1', num_classes)"
    )
    name, path, model = f"{tmp_path}/mine.py:net", tmp_path / "last.pt", create_model("wrn-10-1", 10).eval()
    torch.save({"config": {"student": name}, "student": model.state_dict()}, path)
    with pytest.raises(UserError, match="whose code runs only if you name it: add --student"):
        load_named(f"a={path}")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(load_named(f"a={path}", name)[1](x), model(x))
