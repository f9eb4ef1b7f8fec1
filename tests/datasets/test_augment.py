"""AutoAugment, RandAugment and Cutout from (seed, epoch, step) alone, and the loss on a second view."""

import builtins

import pytest
import torch
from torchvision.transforms import v2

from attacks.pgd import AttackSpec
from datasets.augment import augment, create_augmentation
from datasets.loader import Loader
from engine.command_line import parse_train
from engine.config import TrainConfig
from engine.steps import create_step
from losses import create_objective
from models import create_model
from tests.helpers import run_step
from utils.errors import UserError


def images(n=24, size=32, seed=0):
    return torch.randint(1, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def batches(loader, epoch, first_step=0):
    return [tensor for batch in loader.epoch(epoch, first_step) for tensor in batch]


def equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


# -- the transforms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("autoaugment", v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)),
        ("autoaugment-cifar10", v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)),
        ("autoaugment-svhn", v2.AutoAugment(v2.AutoAugmentPolicy.SVHN)),
        ("randaugment", v2.RandAugment(num_ops=2, magnitude=9)),
    ],
)
def test_equals_torchvision_on_the_same_seed(name, transform):
    x = images()
    torch.manual_seed(5)
    expected = torch.stack([transform(image) for image in x])
    actual = augment(x, create_augmentation(name), seed=5)
    assert actual.dtype == torch.uint8 and torch.equal(actual, expected)
    assert not torch.equal(actual, x)


def test_every_image_has_its_own_draw():
    x = images(1).expand(32, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in augment(x, create_augmentation("autoaugment"), 0)}) > 8


@pytest.mark.parametrize("name", ["autoaugment", "randaugment", "cutout"])
def test_global_generator_does_not_matter_and_is_restored(name):
    x, augmentation = images(), create_augmentation(name)
    torch.manual_seed(1)
    first = augment(x, augmentation, 7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(augment(x, augmentation, 7), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(augment(x, augmentation, 8), first)


def test_cutout_holes():
    n, size, side = 2000, 32, 16
    x = images(n, size)
    hole = augment(x, create_augmentation("cutout"), 0) == 0
    assert torch.equal(hole[:, 0], hole[:, 1]) and torch.equal(hole[:, 0], hole[:, 2])
    rows, cols = hole[:, 0].any(2), hole[:, 0].any(1)
    assert torch.equal(hole[:, 0], rows[:, :, None] & cols[:, None, :])  # a rectangle
    for line in (rows, cols):
        length, first = line.sum(1), line.int().argmax(1)
        inside = (first > 0) & (first + length < size)
        assert (length[inside] == side).all()
        assert length.min() >= side // 2 and length.max() == side  # centred on a pixel of the image
        # Any of 32 centres: the first line is 0 for nine of them, and each of 1 to 23 for one.
        counts = torch.bincount(first, minlength=size)[:24].double()
        expected = torch.tensor([9.0] + [1.0] * 23, dtype=torch.float64) * n / size
        assert len(first.unique()) == 24 and ((counts - expected).abs() < 5 * expected.sqrt()).all()
    untouched = ~hole
    assert torch.equal((x * untouched), augment(x, create_augmentation("cutout"), 0))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mixup", "--augment mixup: choose none, cutout, rotation, randaugment, autoaugment or autoaugment-POLICY"),
        ("cutout-3", "--augment cutout-3: choose none"),
        ("autoaugment-mnist", "--augment autoaugment-mnist: torchvision's policies are cifar10, imagenet, svhn"),
        ("autoaugment-", "--augment autoaugment-: torchvision's policies are cifar10, imagenet, svhn"),
    ],
)
def test_unknown_policy(name, sentence):
    with pytest.raises(UserError) as error:
        create_augmentation(name)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_without_torchvision(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("torchvision"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert create_augmentation("none") is None
    with pytest.raises(UserError, match="pip install torchvision"):
        create_augmentation("autoaugment")


# -- in the loader ---------------------------------------------------------------------------------------------------


def loader(augmentation="autoaugment", **kwargs):
    kwargs = {"batch_size": 10, "seed": 1, "augmentation": create_augmentation(augmentation), **kwargs}
    return Loader(images(), torch.arange(24), **kwargs)


@pytest.mark.parametrize("two_views", [False, True])
def test_batches_depend_on_seed_and_epoch_alone_and_resume(two_views):
    expected = batches(loader(views=1 + two_views), 3)
    torch.manual_seed(99)
    assert equal(batches(loader(views=1 + two_views), 3), expected)
    width = 3 if two_views else 2
    for step in (1, 2):
        assert equal(batches(loader(views=1 + two_views), 3, step), expected[width * step :])
    assert not equal(batches(loader(views=1 + two_views), 4), expected)
    assert not equal(batches(loader(views=1 + two_views, seed=2), 3), expected)


def test_augmentation_comes_after_crop_and_flip():
    plain, augmented = batches(loader("none"), 1), batches(loader(), 1)
    assert equal(plain[1::2], augmented[1::2])  # the same labels in the same order
    seen = []
    spy = loader(augmentation="none")
    spy.views = (lambda x: seen.append(x) or x,)
    list(spy.epoch(1))
    assert equal([x.float() / 255 for x in seen], plain[0::2])


def test_first_view_is_the_plain_one_bit_for_bit():
    both, plain = batches(loader(views=2), 2), batches(loader("none"), 2)
    assert len(both) == 9
    assert equal(both[0::3], plain[0::2]) and equal(both[2::3], plain[1::2])
    assert all(
        second.shape == first.shape and not torch.equal(first, second)
        for first, second in zip(both[0::3], both[1::3], strict=True)
    )
    assert all(x.min() >= 0 and x.max() <= 1 for x in both[1::3])


def test_every_step_draws_its_own_augmentation():
    same, augmentation = images(1).expand(20, -1, -1, -1), create_augmentation("autoaugment")
    repeated = Loader(same, torch.zeros(20), 10, seed=0, padding=0, flip=False, augmentation=augmentation)
    (first, _), (second, _) = repeated.epoch(1)
    assert not torch.equal(first, second)


def test_each_view_has_its_own_crop_and_flip():
    plain, second, _ = next(loader(batch_size=24, augmentation="none", views=2).epoch(1))
    assert (plain == second).flatten(1).all(1).sum() < 3  # each image with a probability of 1 in 162


# -- the second view's loss ------------------------------------------------------------------------------------------


def trained(method, second_weight):
    """State of a student after one step on two views; None is without the second."""
    torch.manual_seed(0)
    student, guide = create_model("wrn-10-1", 10).double(), create_model("wrn-10-1", 10).double()
    chosen = create_objective(method)
    nets = [student, guide] if "guide" in chosen.passes else [student]
    optimizer = torch.optim.SGD([p for net in nets for p in net.parameters()], lr=0.1)
    step = create_step(
        student,
        nets[1] if len(nets) == 2 else None,
        chosen,
        optimizer,
        AttackSpec(0.03, 0.01, 2),
        view_weights=(1.0, second_weight),
    )
    views = torch.rand(2, 6, 3, 16, 16, dtype=torch.float64)[: 1 if second_weight is None else 2]
    terms = run_step(step, list(views), torch.arange(6), [x + 0.001 for x in views])
    return student.state_dict(), terms


@pytest.mark.parametrize("method", ["lbgat", "trades", "at", "natural"])
def test_second_view_adds_its_weighted_loss(method):
    (alone, only), (full, whole), (part, weighted) = (trained(method, weight) for weight in (None, 1.0, 0.3))
    for name, value in only.items():
        assert torch.equal(whole[name], value) and torch.equal(weighted[name], value)
        torch.testing.assert_close(weighted[f"{name}_view2"], 0.3 * whole[f"{name}_view2"], rtol=1e-12, atol=0)
    assert len(whole) == 2 * len(only)
    for name in alone:  # after one step of plain SGD the change is linear in the gradient
        if "running" not in name and "num_batches" not in name:
            moved, expected = part[name] - alone[name], 0.3 * (full[name] - alone[name])
            torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-12)
    passes = [p for p in create_objective(method).passes if p != "guide"]
    assert alone["bn1.num_batches_tracked"] == len(passes) and full["bn1.num_batches_tracked"] == 2 * len(passes)


def test_views_run_one_after_the_other():
    """All passes of view 1 move the BatchNorm statistics before those of view 2."""
    student, order = create_model("wrn-10-1", 10), []
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    step = create_step(
        student, None, create_objective("trades"), optimizer, AttackSpec(0.03, 0.01, 1), view_weights=(1.0, 0.3)
    )
    student.register_forward_hook(lambda net, args, out: order.append(args[0].mean().item()) if net.training else None)
    dark, light = torch.full((4, 3, 16, 16), 0.1), torch.full((4, 3, 16, 16), 0.9)
    step([dark, light], torch.arange(4))
    assert [value > 0.5 for value in order] == [False] * 3 + [True] * 3


def test_flags():
    config = parse_train(["--augment", "autoaugment", "--augment-view-weight", "0.3"])
    assert (config.augment, config.augment_view_weight) == ("autoaugment", 0.3)
    assert (TrainConfig().augment, TrainConfig().augment_view_weight) == ("none", 0)
    with pytest.raises(UserError, match="needs an --augment"):
        TrainConfig(augment_view_weight=0.3)
    with pytest.raises(UserError, match=r"--augment-view-weight -1\.0 must be 0 or more"):
        TrainConfig(augment="cutout", augment_view_weight=-1.0)
