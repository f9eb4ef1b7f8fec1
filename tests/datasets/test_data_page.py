"""docs/data.md: a folder of images becomes a data set, and Tiny-ImageNet's sizes train."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from datasets import load_dataset
from engine.trainer import Trainer
from models import check_images, create_model
from tests.helpers import ROOT, tiny_run

FOLDERS, SORT = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL | re.MULTILINE)


def write_image(path, color):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 60), color).save(path)


def test_a_folder_of_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        for i in range(12):
            write_image(tmp_path / "images" / split / "cat" / f"{i}.png", (10, 20, 30))
            write_image(tmp_path / "images" / split / "dog" / f"{i}.png", (40, 50, 60))
    exec(compile(FOLDERS, "docs/data.md", "exec"), {})
    data = load_dataset("mine", tmp_path / "data")
    assert data.x_train.shape == data.x_test.shape == (24, 64, 64, 3) and data.class_names == ("cat", "dog")
    assert (
        data.y_test.sum() == 12 and (data.x_test[:, 0, 0] == np.where(data.y_test, 40, 10)[:, None] + [0, 10, 20]).all()
    )
    assert data.order_notice("train", "test") == ""


def test_tiny_imagenets_validation_images_are_sorted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tiny-imagenet-200" / "val"
    write_image(folder / "images" / "val_0.JPEG", (1, 2, 3))
    (folder / "val_annotations.txt").write_text("val_0.JPEG\tn03444034\t0\t32\t44\t62\n")
    exec(compile(SORT, "docs/data.md", "exec"), {})
    assert (tmp_path / "images" / "test" / "n03444034" / "val_0.JPEG").is_file()


def test_tiny_imagenet_trains(tmp_path):
    random = np.random.default_rng(0)
    arrays = {f"x_{split}": random.integers(0, 256, (8, 64, 64, 3), np.uint8) for split in ("train", "test")}
    arrays |= {f"y_{split}": random.integers(0, 200, 8) for split in ("train", "test")}
    np.savez(tmp_path / "tinyimagenet.npz", **arrays, class_names=[f"n{i:08d}" for i in range(200)])
    run = {"dataset": "tinyimagenet", "data_dir": str(tmp_path), "method": "trades", "num_steps": 1, "epochs": 1}
    trainer = Trainer(tiny_run(tmp_path, **run, batch_size=4, val_size=0, eval_size=2, decay_epochs=()))
    trainer.fit()
    assert trainer.student.fc.out_features == 200 and (tmp_path / "checkpoints/run/student-epoch001.pt").exists()


@pytest.mark.parametrize(
    ("name", "last", "pixels"), [("wrn-16-2", "block3", 16), ("preactresnet18", "layer4", 8), ("resnet18", "layer4", 8)]
)
def test_networks_at_64_pixels_have_the_weights_of_32(name, last, pixels):
    check_images(name, 200, 4, 64, 64)
    with torch.device("meta"):
        model, shapes = create_model(name, 200).eval(), []
        getattr(model, last).register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[2:]))
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 200)
    assert shapes == [(pixels, pixels)]


@pytest.mark.parametrize(("name", "size"), [("wrn-10-1", 8), ("resnet18-guide", 8), ("preactresnet18", 16)])
def test_the_smallest_sizes_of_the_page_fit(name, size):
    check_images(name, 10, 2, size, size)


@pytest.mark.parametrize(("name", "pool"), [("wrn-10-1", 8), ("preactresnet18", 4)])
def test_at_32_pixels_the_pool_is_the_published_one(name, pool, monkeypatch):
    model, x = create_model(name, 10).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        ours = model(x)
        monkeypatch.setattr(F, "adaptive_avg_pool2d", lambda x, size: F.avg_pool2d(x, pool))
        torch.testing.assert_close(ours, model(x), rtol=1e-5, atol=1e-6)
