"""A folder of images for each class, perhaps inside a folder for each split, as for torchvision's ImageFolder."""

from __future__ import annotations

from avpt.datasets.folder import rows
from avpt.datasets.rows import Dataset

DATASET = Dataset(rows, key="image", stratified=True)  # the rows of `folder`, with each image as a clip
