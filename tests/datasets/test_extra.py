"""Extra images: mapped instead of loaded, mixed into every batch at the exact fraction, from (seed, epoch) alone."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from datasets import extra as extra_module
from datasets.extra import load_extra
from datasets.loader import Loader
from engine.command_line import parse_train
from engine.config import TrainConfig
from engine.stopping import Stopped, StopSignal
from engine.trainer import Trainer
from utils.errors import UserError
from utils.files import write_atomically

REAL, EXTRA = 50, 40


def arrays(n=EXTRA, size=8, classes=10, **changes):
    """Extra images are bright (200 and up), their number told by the pixels; real ones of these tests are below 100."""
    images = np.empty((n, size, size, 3), np.uint8)
    images[:] = 200 + np.arange(n, dtype=np.uint8)[:, None, None, None]
    return {"image": images, "label": np.arange(n) % classes, **changes}


def write(folder, save=np.savez, **changes):
    path = folder / "generated.npz"
    save(path, **arrays(**changes))
    return path


def load(path, fraction=0.7, shape=(8, 8, 3), num_classes=10):
    return load_extra(path, fraction, shape, num_classes)


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_mapped_equals_in_memory(tmp_path, save, dtype):
    path = write(tmp_path, save, label=(np.arange(EXTRA) % 10).astype(dtype))
    for _ in range(2):  # the second time from what the first has unpacked
        extra = load(path)
        assert isinstance(extra.images, np.memmap) and isinstance(extra.labels, np.memmap)
        assert not extra.images.flags.writeable
        with np.load(path) as file:
            assert np.array_equal(extra.images, file["image"]) and np.array_equal(extra.labels, file["label"])
            assert extra.labels.dtype == dtype
    unpacked = sorted(p.name.split("-")[1] for p in tmp_path.glob("*.npy"))
    assert unpacked == ([] if save is np.savez else ["image", "label"])
    assert not list(tmp_path.glob("*.tmp"))


def test_fortran_order_and_further_keys(tmp_path):
    images = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (EXTRA, 8, 8, 3), dtype=np.uint8))
    extra = load(write(tmp_path, image=images, seed=np.arange(3)))
    assert np.array_equal(extra.images, images)


def test_fingerprint_is_of_the_content(tmp_path):
    changed = arrays()["image"].copy()
    changed[3, 2, 1, 0] ^= 1
    stored = load(write(tmp_path)).fingerprint
    assert load(write(tmp_path, np.savez_compressed)).fingerprint == stored
    assert load(write(tmp_path, image=changed)).fingerprint != stored
    assert load(write(tmp_path, label=np.zeros(EXTRA, np.int64))).fingerprint != stored


def test_another_file_of_the_same_name_is_unpacked_anew(tmp_path):
    load(write(tmp_path, np.savez_compressed))
    dark = np.zeros((EXTRA, 8, 8, 3), np.uint8)
    assert np.array_equal(load(write(tmp_path, np.savez_compressed, image=dark)).images, dark)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": np.arange(EXTRA)}, "labels run from 0 to 39, outside the 10 classes"),
        ({"label": np.arange(EXTRA) % 10 - 1}, "labels run from -1 to 8, outside the 10 classes"),
        ({"size": 9}, "images are (9, 9, 3), those of the data set (8, 8, 3)"),
        ({"n": 0}, "0 images and 0 labels"),
        ({"label": np.zeros(3, int)}, "40 images and 3 labels"),
        ({"image": np.zeros((EXTRA, 8, 8, 3), np.float32)}, "image is float32 (40, 8, 8, 3)"),
        ({"image": np.zeros((EXTRA, 8, 8), np.uint8)}, "image is uint8 (40, 8, 8)"),
        ({"label": np.zeros(EXTRA)}, "label float64 (40,)"),
        ({"label": np.zeros((EXTRA, 1), int)}, "label int64 (40, 1)"),
        (
            {"label": np.array([None] * EXTRA)},
            "is not a readable npz file (label.npy holds Python objects: save a plain array",
        ),
    ],
)
def test_unfit_content(tmp_path, changes, sentence):
    path = write(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        load(path)
    assert str(error.value).startswith(f"--extra-data {path}") and sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_truncated(tmp_path, save, kept):
    path = write(tmp_path, save)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match="is not a readable npz file"):
        load(path)


def test_damaged_inside(tmp_path):
    path = write(tmp_path, np.savez_compressed)
    content = bytearray(path.read_bytes())
    content[80:120] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a readable npz file"):
        load(path)
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file_and_missing_key(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", image=arrays()["image"])
    with pytest.raises(UserError, match="has no key 'label': it must hold image and label"):
        load(tmp_path / "other.npz")


def test_no_room_to_unpack(tmp_path, monkeypatch):
    path = write(tmp_path, np.savez_compressed)
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot be unpacked beside itself \(No space left on device\)"):
        load(path)
    assert [file for file in tmp_path.iterdir() if file.suffix != ".lock"] == [path]


def test_several_processes_unpack_once(tmp_path, monkeypatch):
    path, written = write(tmp_path, np.savez_compressed), []

    def slowly(target, unpack):
        time.sleep(0.05)
        written.append(target.suffix)
        write_atomically(target, unpack)

    monkeypatch.setattr("datasets.extra.write_atomically", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert len({extra.fingerprint for extra in pool.map(lambda _: load(path), range(4))}) == 1
    assert written.count(".npy") == 2  # images and labels


# -- in the loader ---------------------------------------------------------------------------------------------------


def loader(extra, batch_size=16, seed=1, **kwargs):
    images = torch.arange(1, REAL + 1, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return Loader(images, torch.arange(REAL) % 10, batch_size, seed, padding=0, extra=extra, **kwargs)


def pixels(batch):
    return (batch[0][:, 0, 4, 4] * 255).round().long()


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 50, 64])
def test_fraction_is_exact_in_every_batch(tmp_path, fraction, batch_size):
    extra = load(write(tmp_path), fraction)
    batches = list(loader(extra, batch_size).epoch(1))
    sizes = [len(y) for _, y in batches]
    assert sum(sizes) == REAL and len(batches) == -(-REAL // batch_size)  # an epoch is as long as without
    real = []
    for batch, size in zip(batches, sizes, strict=True):
        values = pixels(batch)
        assert (values >= 200).sum() == round(fraction * size)
        labels = torch.where(values >= 200, values - 200, values - 1) % 10
        assert torch.equal(batch[1], labels) and batch[1].dtype == torch.int64
        real += values[values < 200].tolist()
    assert len(set(real)) == len(real)  # no real image twice in an epoch


def test_every_image_is_drawn_alike(tmp_path):
    mixed = loader(load(write(tmp_path)))
    drawn = torch.cat([pixels(batch) for epoch in range(1, 201) for batch in mixed.epoch(epoch)])
    counts = torch.bincount(drawn, minlength=256)
    for part in (counts[1 : REAL + 1], counts[200 : 200 + EXTRA]):
        mean = part.double().mean()
        assert part.sum() > 2000 and ((part - mean).abs() < 5 * mean.sqrt()).all()


def test_order_depends_on_seed_and_epoch_alone_and_resumes(tmp_path):
    extra = load(write(tmp_path))

    def tensors(epoch, first_step=0, seed=1, **kwargs):
        return [t for batch in loader(extra, seed=seed, **kwargs).epoch(epoch, first_step) for t in batch]

    def same(a, b):
        return len(a) == len(b) and all(map(torch.equal, a, b))

    expected = tensors(3)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert same(tensors(3), expected) and torch.equal(torch.get_rng_state(), state)
    for step in (1, 2, 3):
        assert same(tensors(3, step), expected[2 * step :])
    assert not same(tensors(4), expected) and not same(tensors(3, seed=2), expected)
    in_memory = load_extra(write(tmp_path, np.savez_compressed), 0.7, (8, 8, 3), 10)
    assert same([t for batch in loader(in_memory).epoch(3) for t in batch], expected)


def test_kept_real_images_are_as_without(tmp_path):
    """The order, crops and flips of the real images are those of a run without extra data."""
    mixed = list(loader(load(write(tmp_path))).epoch(2))
    for (x, y), (x0, y0) in zip(mixed, loader(None).epoch(2), strict=True):
        kept = len(y) - round(0.7 * len(y))
        assert torch.equal(x[:kept], x0[:kept]) and torch.equal(y[:kept], y0[:kept])


# -- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--extra-data x.npz --extra-fraction 1", "--extra-fraction 1.0 must be in [0, 1)"),
        ("--extra-data x.npz --extra-fraction -0.1", "--extra-fraction -0.1 must be in [0, 1)"),
        ("--extra-data x.npz --extra-fraction nan", "--extra-fraction nan must be in [0, 1)"),
        ("--extra-fraction 0.7", "--extra-data FILE and --extra-fraction above 0 go together"),
        ("--extra-data x.npz", "--extra-data FILE and --extra-fraction above 0 go together"),
    ],
)
def test_flags(line, sentence):
    with pytest.raises(UserError) as error:
        parse_train(line.split())
    assert str(error.value).startswith(sentence)


def config(folder, **changes):
    settings = {
        "student": "wrn-10-1", "method": "at", "batch_size": 32, "limit_train": 96, "val_size": 32, "eval_size": 16,
        "num_steps": 1, "epochs": 2, "mark": "run", "device": "cpu", "log_dir": str(folder / "logs"),
        "checkpoint_dir": str(folder / "checkpoints"), "augment": "autoaugment", "augment_view_weight": 0.3,
    }  # fmt: skip
    return TrainConfig.create(**settings | changes)


def test_run_resumes_exactly_with_extra_data_and_a_second_view(tmp_path, monkeypatch):
    path = write(tmp_path, n=55, size=16)
    flags = {"extra_data": str(path), "extra_fraction": 0.7}
    whole = Trainer(config(tmp_path / "whole", **flags))
    whole.fit()
    cut = Trainer(config(tmp_path / "cut", **flags))
    original = StopSignal.check

    def stop_in_second_epoch(self):
        if (cut.progress.epoch, cut.progress.step) == (2, 2):
            self.reason = "SIGTERM"
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "check", stop_in_second_epoch)
        with pytest.raises(Stopped):
            cut.fit()
    moved = path.rename(tmp_path / "elsewhere.npz")
    torch.manual_seed(1234)
    resumed = Trainer(config(tmp_path / "cut", **flags | {"extra_data": str(moved)}))
    assert (resumed.progress.epoch, resumed.progress.step) == (2, 2)
    resumed.fit()
    expected, actual = whole.student.state_dict(), resumed.student.state_dict()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    with pytest.raises(UserError, match="the images are not the same"):
        Trainer(config(tmp_path / "cut", **flags | {"extra_data": str(write(tmp_path, n=54, size=16))}))
    with pytest.raises(UserError, match=r"--extra-fraction 0\.7 then, 0\.5 now"):
        Trainer(config(tmp_path / "cut", extra_data=str(moved), extra_fraction=0.5))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_content_is_compared_with_its_checksum_once(tmp_path, save, monkeypatch):
    path, read = write(tmp_path, save), []
    crc32 = extra_module._crc32
    monkeypatch.setattr(extra_module, "_crc32", lambda *args: read.append(args[0].name) or crc32(*args))
    load(path), load(path)
    noted = sorted(p.name for p in tmp_path.glob("*.checked"))
    files = [path.name] * 2 if save is np.savez else sorted(p.name for p in tmp_path.glob("*.npy"))
    assert noted == sorted(f"{name}.checked" for name in set(files))
    load(path)
    assert sorted(read) == sorted(files)
    for name in noted:
        (tmp_path / name).write_bytes(b"\xff damaged")
    load(path)
    assert sorted(read) == sorted(2 * files)


def test_a_flipped_bit_in_mapped_images_is_noticed(tmp_path):
    path = write(tmp_path)
    load(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"the checksum of image\.npy is wrong"):
        load(path)


def test_a_stale_or_poisoned_unpacked_file_is_replaced(tmp_path):
    path = write(tmp_path, np.savez_compressed)
    load(path)
    unpacked = next(tmp_path.glob("generated-image-*.npy"))
    content = bytearray(unpacked.read_bytes())
    content[-1] ^= 255
    unpacked.write_bytes(content)
    assert np.array_equal(load(path).images, arrays()["image"])


def test_a_compressed_file_of_other_images_is_not_unpacked(tmp_path):
    path = write(tmp_path, np.savez_compressed, size=16)
    with pytest.raises(UserError, match=r"images are \(16, 16, 3\), those of the data set \(8, 8, 3\)"):
        load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["generated.npz"]
