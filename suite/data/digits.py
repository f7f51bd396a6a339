"""`digits`: 1,797 images of handwritten digits, embedded in scikit-learn.

Each 8x8 image with values 0..16 is scaled to 32x32 pixels 0..255 (bilinear) and repeated as three channels. 1,437
images are for training, 360 for testing; no flips, since a mirrored digit is another sign, and crops by 2 pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from suite.data.base import Dataset
from suite.data.resident import Arrays, Resident

MEAN, STD = 0.3057, 0.3238
"""Of the training pixels."""


def digits(folder: Path) -> Dataset:
    """Return the digits; `folder` is unused."""
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    small_N1HW = torch.from_numpy(bunch.images)[:, None]
    # The bilinear weights are eighths, so double precision is exact and the pixels are the same on every machine.
    large_N1HW = F.interpolate(small_N1HW, size=(32, 32), mode="bilinear", align_corners=False)
    images_NCHW = (large_N1HW * 255 / 16).round().to(torch.uint8).repeat(1, 3, 1, 1)
    labels_N = torch.from_numpy(bunch.target.astype(np.int64))

    tested_N = torch.zeros(len(labels_N), dtype=torch.bool)
    tested_N[torch.argsort(labels_N, stable=True)[::5]] = True  # every fifth within its class: a stratified split
    arrays = Arrays(
        train_images_NCHW=images_NCHW[~tested_N],
        train_labels_N=labels_N[~tested_N],
        test_images_NCHW=images_NCHW[tested_N],
        test_labels_N=labels_N[tested_N],
    )
    return Resident(
        name="digits", classes=10, mean=(MEAN,) * 3, std=(STD,) * 3, arrays=arrays, crop_padding=2, flip=False
    )


DATASETS = {"digits": digits}
