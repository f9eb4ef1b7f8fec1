"""The UCI handwritten digits that scikit-learn ships: 1,797 real images, nothing to download."""

import numpy as np
import torch

from datasets import Dataset
from utils.errors import UserError

IMAGE_SIZE = 16  # the 8x8 scans are enlarged: after two strides of 2 the last feature map is still 4x4
NUM_TEST = 360


def load() -> Dataset:
    """1,437 training and 360 test images, (N, 16, 16, 3) uint8; a fixed stratified split.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UserError("the digits come with scikit-learn, which is missing: pip install scikit-learn") from error
    digits = load_digits()
    small = torch.from_numpy(digits.images / 16.0).unsqueeze(1)
    large = torch.nn.functional.interpolate(small, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    images = (large * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    labels = digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=NUM_TEST, stratify=labels, random_state=0
    )
    return Dataset(
        name="digits",
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=tuple(str(i) for i in range(10)),
        padding=2,  # of 16 pixels what 4 is of 32
        flip=False,  # a mirrored digit is another sign
    )
