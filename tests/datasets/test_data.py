"""Data sets, their failures, and the batches made of them."""

import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from datasets import Dataset, load_dataset
from datasets.loader import Loader, hold_out, random_crop, random_flip, to_device, to_float
from tests.helpers import ROOT
from utils.errors import UserError

# -- the digits ------------------------------------------------------------------------------------------------------


def test_digits():
    digits = load_dataset("digits")
    assert digits.x_train.shape == (1437, 16, 16, 3) and digits.x_test.shape == (360, 16, 16, 3)
    assert digits.x_train.dtype == np.uint8 and digits.y_train.dtype == np.int64
    assert digits.class_names == tuple("0123456789") and digits.num_classes == 10
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 255)
    assert (digits.x_train[..., 0] == digits.x_train[..., 1]).all()  # grey
    assert (digits.padding, digits.flip) == (2, False)
    # A fifth of each class is in the test split.
    train, test = np.bincount(digits.y_train), np.bincount(digits.y_test)
    assert (train + test).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.abs(test - (train + test) * 360 / 1797).max() < 1


def test_digits_split_is_fixed():
    assert load_dataset("digits").fingerprint() == load_dataset("digits").fingerprint() == "6ca05a90"


def test_digits_are_the_original_scans():
    """Averaging 2x2 pixels of the enlarged digits gives a blurred original: they correlate strongly."""
    from sklearn.datasets import load_digits

    originals = load_digits()
    digits = load_dataset("digits")
    small = digits.x_test[..., 0].reshape(-1, 8, 2, 8, 2).mean((2, 4)).reshape(len(digits.x_test), -1)
    centred = originals.data - originals.data.mean(1, keepdims=True)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    small = small - small.mean(1, keepdims=True)
    small /= np.linalg.norm(small, axis=1, keepdims=True)
    likeness = small @ centred.T
    assert likeness.max(1).min() > 0.95
    assert (originals.target[likeness.argmax(1)] == digits.y_test).mean() == 1.0


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        load_dataset("digits")


# -- npz files -------------------------------------------------------------------------------------------------------


def arrays(num_classes=10, n=20, size=8, **changes):
    generator = np.random.default_rng(0)
    content = {
        "x_train": generator.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        "y_train": generator.integers(0, num_classes, n),
        "x_test": generator.integers(0, 256, (n // 2, size, size, 3), dtype=np.uint8),
        "y_test": generator.integers(0, num_classes, n // 2),
        "class_names": np.array([f"class {i}" for i in range(num_classes)]),
        **changes,
    }
    return {key: value for key, value in content.items() if value is not None}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100), ("mine", 3)])
def test_npz_round_trip(tmp_path, save, name, num_classes):
    content = arrays(num_classes)
    save(tmp_path / f"{name}.npz", **content, more=np.zeros(3))  # further keys do no harm
    dataset = load_dataset(name, tmp_path)
    for key in ("x_train", "y_train", "x_test", "y_test"):
        assert (getattr(dataset, key) == content[key]).all()
    assert dataset.class_names == tuple(content["class_names"])
    assert (dataset.name, dataset.num_classes, dataset.padding, dataset.flip) == (name, num_classes, 4, True)


@pytest.mark.parametrize("key", ["y_train", "y_test"])
def test_images_in_the_order_of_their_classes_are_noticed(key):
    labels = {split: np.tile(np.arange(4, dtype=np.uint8), 6) for split in ("y_train", "y_test")}
    images = np.zeros((24, 8, 8, 3), np.uint8)
    mine = partial(Dataset, name="a", x_train=images, x_test=images, class_names=tuple("abcd"))
    assert mine(**labels).order_notice("train", "test") == ""
    labels[key] = np.sort(labels[key])
    notice = mine(**labels).order_notice("train", "test")
    assert notice.startswith(f"the {key.removeprefix('y_')} images are sorted by class")


def test_labels_of_any_integer_type(tmp_path):
    content = arrays()
    np.savez(tmp_path / "a.npz", **content)
    np.savez(tmp_path / "b.npz", **{**content, "y_train": content["y_train"].astype(np.uint8)})
    assert load_dataset("a", tmp_path).fingerprint() == load_dataset("b", tmp_path).fingerprint()


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_fingerprint_notices_one_changed_value(key):
    content = arrays()

    def fingerprint():
        return Dataset(name="d", **{**content, "class_names": tuple(content["class_names"])}).fingerprint()

    before = fingerprint()
    content[key] = content[key].copy()
    content[key].flat[0] = (content[key].flat[0] + 1) % 10
    assert fingerprint() != before


N20 = np.zeros(20, dtype=np.int64)
BAD_CONTENT = {
    "float images": ({"x_train": np.zeros((20, 8, 8, 3), np.float32)}, r"train.*float32.*must be uint8 \(N, H, W, 3\)"),
    "channels first": ({"x_test": np.zeros((10, 3, 8, 8), np.uint8)}, r"test.*\(10, 3, 8, 8\).*must be uint8"),
    "flat images": ({"x_train": np.zeros((20, 192), np.uint8)}, r"train.*\(20, 192\)"),
    "float labels": ({"y_train": N20 + 0.5}, "train.*float64.*must be integers"),
    "one-hot labels": ({"y_train": np.zeros((20, 10), np.int64)}, r"train.*\(20, 10\).*must be integers"),
    "a single label": ({"y_train": np.array(3)}, r"train.*int64 \(\).*must be integers"),
    "label too large": ({"y_train": N20 + 10}, "train.*from 10 to 10, outside the 10 classes"),
    "label negative": ({"y_test": N20[:10] - 1}, "test.*from -1 to -1, outside the 10 classes"),
    "too few labels": ({"y_train": N20[:19]}, "train.*20 images but 19 labels"),
    "no images": ({"x_test": np.zeros((0, 8, 8, 3), np.uint8), "y_test": N20[:0]}, "test.*0 images but 0 labels"),
    "sizes differ": ({"x_test": np.zeros((10, 9, 9, 3), np.uint8)}, "train and test images differ in size"),
    "class count": ({"class_names": np.array(["a"] * 12)}, "names 12 classes, cifar10 has 10"),
    "names not a list": ({"class_names": np.array("cat")}, "class_names"),
    "names no text": (
        {"class_names": np.zeros(10, np.complex64)},
        r"class_names is complex64 \(10,\), it must be text",
    ),
    "too many names": ({"class_names": np.full(100_001, "a")}, "at most 100000"),
    "flip is a number": ({"flip": 1}, r"flip is int64 \(\), it must be True or False"),
    "padding is negative": ({"padding": -1}, "padding must be a whole number of pixels, from 0 to 64"),
    "padding is a list": ({"padding": [4, 4]}, "padding must be a whole number"),
    "missing key": ({"y_test": None}, "lacks the keys y_test: it must hold x_train"),
    "missing keys": ({"y_test": None, "x_test": None}, "lacks the keys x_test, y_test"),
    "objects": (
        {"class_names": np.array([{"a": 1}], dtype=object)},
        "class_names.npy holds Python objects: save a plain",
    ),
    "labels from 1": ({"y_train": N20 + 1, "y_test": N20[:10] + 10}, "outside the 10 classes"),
    "labels 1 to C": ({"y_train": np.arange(20) % 10 + 1}, "from 1 to 10, outside the 10 classes: subtract 1, labels"),
    "surrogate": (
        {"class_names": np.array(["\ud800", *"abcdefghi"])},
        r"the class name '\\ud800' is no text: rename it",
    ),
    "no names, from 1": ({"class_names": None, "y_train": N20 + 1, "y_test": N20[:10] + 1}, "labels start at 0"),
    "no names, huge": ({"class_names": None, "y_train": N20 + 2**60}, "at most 100000 classes"),
    "grey": (
        {"x_train": np.zeros((20, 8, 8), np.uint8)},
        r"must be uint8 \(N, H, W, 3\): repeat a grey image's channel three times",
    ),
    "no names, text": ({"class_names": None, "y_train": np.array(["a"] * 20)}, "they must be integers"),
}


def test_npz_without_class_names(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays(class_names=None))
    dataset = load_dataset("mine", tmp_path)
    assert dataset.class_names == tuple(map(str, range(dataset.num_classes)))
    assert dataset.num_classes == 1 + max(dataset.y_train.max(), dataset.y_test.max())


def test_npz_says_whether_to_mirror_and_how_far_to_crop(tmp_path):
    for i, (changes, expected) in enumerate(((({}), (True, 4)), ({"flip": False, "padding": 0}, (False, 0)))):
        np.savez(tmp_path / f"mine{i}.npz", **arrays(**changes))
        dataset = load_dataset(f"mine{i}", tmp_path)
        assert (dataset.flip, dataset.padding) == expected
    prints = [load_dataset(f"mine{i}", tmp_path).fingerprint() for i in (0, 1)]
    assert prints[0] != prints[1]  # a run does not go on with another augmentation


@pytest.mark.parametrize("what", BAD_CONTENT)
def test_npz_with_bad_content(tmp_path, what):
    changes, message = BAD_CONTENT[what]
    np.savez(tmp_path / "cifar10.npz", **arrays(**changes))
    with pytest.raises(UserError, match=message):
        load_dataset("cifar10", tmp_path)


def corrupt(path, how):
    content = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not found\n")
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif how == "pickle":
        with open(path, "wb") as file:
            np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif how == "member":
        with zipfile.ZipFile(path, "w") as archive:
            for key in ("x_train", "y_train", "x_test", "y_test", "class_names"):
                archive.writestr(f"{key}.npy", b"nothing")
    elif how == "method":  # of compression, unknown
        path.write_bytes(content.replace(b"PK\x01\x02", b"PK\x01\x02\xff\xff\xff\xff\xff\xff\xff\xff")[: len(content)])
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:  # some bytes of a member changed, at several places
        at = int(len(content) * float(how))
        path.write_bytes(content[:at] + bytes(b ^ 0xFF for b in content[at : at + 8]) + content[at + 8 :])


HOW = ["empty", "text", "truncated", "npy", "pickle", "member", "method", "folder", "0.1", "0.3", "0.5", "0.6"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_corrupt_npz(tmp_path, save, how):
    path = tmp_path / "cifar10.npz"
    content = arrays(n=200)
    content["x_train"] //= 64  # compressible
    save(path, **content)
    corrupt(path, how)
    with pytest.raises(UserError, match=r"cifar10\.npz is not a readable npz file .*write or copy it again"):
        load_dataset("cifar10", tmp_path)


# -- download --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    "error", [URLError("no network"), RuntimeError("File not found or corrupted."), TimeoutError()]
)
def test_no_network_and_no_data(tmp_path, monkeypatch, name, error):
    def no_network(*args, **kwargs):
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    folder = tmp_path / "data"
    with pytest.raises(UserError) as caught:
        load_dataset(name, folder)
    message = str(caught.value)
    assert f"{name} is not in {folder} and could not be downloaded" in message
    assert f"put {name}.npz (keys x_train, y_train, x_test, y_test, class_names) into" in message
    assert "--dataset digits" in message


def test_several_processes_download_once(tmp_path, monkeypatch):
    calls = []

    class Source:
        """Like torchvision's: without the file it raises, unless it may download."""

        data, targets, classes = np.zeros((2, 8, 8, 3), np.uint8), [0, 1], [str(i) for i in range(10)]

        def __init__(self, folder, train, download=False):
            file = Path(folder) / "file"
            if not file.exists() and not download:
                raise RuntimeError("Dataset not found or corrupted")
            if not file.exists():
                calls.append(folder)
                time.sleep(0.1)
                file.write_text("images")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Source)
    with ThreadPoolExecutor(4) as pool:
        datasets = list(pool.map(lambda _: load_dataset("cifar10", tmp_path / "data"), range(4)))
    assert len(calls) == 1 and [d.num_classes for d in datasets] == [10] * 4

    def refuse(lock, *args, **kwargs):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert load_dataset("cifar10", tmp_path / "a file system without locks").num_classes == 10


def test_data_folder_is_a_file(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(UserError, match=r"data and could not be downloaded .*File exists"):
        load_dataset("cifar10", tmp_path / "data")


def test_unknown_data_set_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"unknown data set 'svhn': choose digits, cifar10 or cifar100.*svhn\.npz"):
        load_dataset("svhn", tmp_path)


# -- real CIFAR ------------------------------------------------------------------------------------------------------


def test_real_cifar100():
    if not (ROOT / "data" / "cifar100.npz").exists():
        pytest.skip("data/cifar100.npz is not there: the real CIFAR-100 is not checked")
    cifar = load_dataset("cifar100", ROOT / "data")
    assert cifar.x_train.shape == (50000, 32, 32, 3) and cifar.x_test.shape == (10000, 32, 32, 3)
    assert (np.bincount(cifar.y_train) == 500).all() and (np.bincount(cifar.y_test) == 100).all()
    assert cifar.class_names[:3] == ("apple", "aquarium_fish", "baby") and cifar.class_names[99] == "worm"
    assert cifar.y_train[:5].tolist() == [19, 29, 0, 11, 1] and cifar.y_test[:5].tolist() == [49, 33, 72, 51, 71]
    # The channel means that every CIFAR-100 program quotes.
    np.testing.assert_allclose(cifar.x_train.mean((0, 1, 2)) / 255, [0.5071, 0.4865, 0.4409], atol=1e-4)


# -- held-out images -------------------------------------------------------------------------------------------------


def test_hold_out_partitions():
    kept, held_out = hold_out(100, 30, seed=4)
    assert len(held_out) == 30 and sorted([*kept, *held_out]) == list(range(100))
    assert (np.diff(kept) > 0).all() and (np.diff(held_out) > 0).all()
    assert (hold_out(100, 30, seed=4)[1] == held_out).all()
    assert (hold_out(100, 30, seed=5)[1] != held_out).any()
    kept, held_out = hold_out(100, 0, seed=4)
    assert kept.tolist() == list(range(100)) and len(held_out) == 0


@pytest.mark.parametrize("size", [100, 101])
def test_hold_out_everything(size):
    with pytest.raises(UserError, match=f"--val-size {size} leaves nothing of 100"):
        hold_out(100, size, seed=0)


# -- batches ---------------------------------------------------------------------------------------------------------


def test_to_float_is_totensor():
    from torchvision.transforms.functional import to_tensor

    image = np.arange(256 * 3, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8)
    x, y = to_device(image[None], np.array([3], dtype=np.uint8), torch.device("cpu"))
    assert x.shape == (1, 3, 16, 16) and x.dtype == torch.uint8 and y.dtype == torch.int64
    assert torch.equal(to_float(x)[0], to_tensor(image))  # to the last bit, all 256 values


def test_random_crop_against_a_loop():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (9, 3, 6, 5), generator=generator, dtype=torch.uint8)
    top, left = torch.arange(9), torch.arange(9).flip(0)
    top[0], left[0] = 4, 4  # no shift
    cropped = random_crop(images, top, left, padding=4)
    assert cropped.shape == images.shape
    for i in range(9):
        for row in range(6):
            for col in range(5):
                r, c = row + top[i] - 4, col + left[i] - 4
                inside = 0 <= r < 6 and 0 <= c < 5
                expected = images[i, :, r, c] if inside else torch.zeros(3, dtype=torch.uint8)
                assert torch.equal(cropped[i, :, row, col], expected)
    assert torch.equal(cropped[0], images[0])


def test_random_flip_against_a_loop():
    images = torch.arange(3 * 2 * 2 * 5).view(3, 2, 2, 5)
    flipped = random_flip(images, torch.tensor([True, False, True]))
    for i, flip in enumerate([True, False, True]):
        for col in range(5):
            assert torch.equal(flipped[i, :, :, col], images[i, :, :, 4 - col if flip else col])


def numbered(n=50, size=8):
    """Images in which each pixel tells which image and where it is, and their numbers as labels."""
    images = torch.zeros(n, 3, size, size, dtype=torch.uint8)
    images[:, 0] = torch.arange(1, n + 1, dtype=torch.uint8)[:, None, None]
    images[:, 1] = torch.arange(1, size + 1, dtype=torch.uint8)[None, :, None]
    images[:, 2] = torch.arange(1, size + 1, dtype=torch.uint8)[None, None, :]
    return images, torch.arange(n)


def epoch_of(loader, epoch, first_step=0):
    return list(loader.epoch(epoch, first_step))


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(u, v) for p, q in zip(a, b, strict=True) for u, v in zip(p, q, strict=True)
    )


def test_every_image_once_an_epoch():
    images, labels = numbered()
    loader = Loader(images, labels, batch_size=16, seed=1, padding=0, flip=False)
    orders = []
    for epoch in (1, 2):
        batches = epoch_of(loader, epoch)
        assert [len(y) for _, y in batches] == [16, 16, 16, 2] and len(loader) == 4
        order = torch.cat([y for _, y in batches])
        assert sorted(order.tolist()) == list(range(50))
        assert torch.equal(torch.cat([x for x, _ in batches]), images[order].float() / 255)
        orders.append(order.tolist())
    assert orders[0] != orders[1] != list(range(50))


def test_batches_depend_on_seed_and_epoch_alone():
    images, labels = numbered()
    loader = Loader(images, labels, batch_size=16, seed=1)
    first, second = epoch_of(loader, 1), epoch_of(loader, 2)
    torch.manual_seed(99)
    torch.rand(5)
    assert same(epoch_of(Loader(images, labels, batch_size=16, seed=1), 2), second)  # without an epoch 1 before it
    assert not same(first, second)
    assert not same(epoch_of(Loader(images, labels, batch_size=16, seed=2), 1), first)
    state = torch.get_rng_state()
    epoch_of(loader, 3)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched


@pytest.mark.parametrize("first_step", [0, 1, 3, 4])
def test_first_step_is_skipping(first_step):
    loader = Loader(*numbered(), batch_size=16, seed=1)
    assert same(epoch_of(loader, 5, first_step), epoch_of(loader, 5)[first_step:])


def shifts_of(x):
    """(top, left, flipped) of each augmented numbered image, read off its pixels."""
    found = []
    for image in (x * 255).round().long():
        rows, cols = image[1].amax(1), image[2].amax(0)
        inside = rows.nonzero()[0]
        top = int(rows[inside] - 1 - inside)
        columns = cols[cols > 0]
        flipped = bool(columns[0] > columns[-1])
        cols = cols.flip(0) if flipped else cols
        inside = cols.nonzero()[0]
        found.append((top, int(cols[inside] - 1 - inside), flipped))
    return found


def test_crops_and_flips_are_uniform():
    images, labels = numbered(n=200, size=12)
    loader = Loader(images, labels, batch_size=200, seed=3, padding=4, flip=True)
    found = [shift for epoch in range(1, 21) for x, _ in loader.epoch(epoch) for shift in shifts_of(x)]
    n = len(found)
    for axis in (0, 1):
        counts = np.bincount([shift[axis] + 4 for shift in found], minlength=9)
        assert len(counts) == 9 and np.abs(counts - n / 9).max() < 5 * (n / 9) ** 0.5
    assert abs(sum(shift[2] for shift in found) - n / 2) < 4 * (n / 4) ** 0.5
    # Drawn independently of each other
    assert abs(np.corrcoef([s[0] for s in found], [s[1] for s in found])[0, 1]) < 5 / n**0.5


def test_range_and_layout_of_a_batch():
    x, y = next(Loader(*numbered(), batch_size=16, seed=1).epoch(1))
    assert x.shape == (16, 3, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.min() >= 0 and x.max() <= 1
