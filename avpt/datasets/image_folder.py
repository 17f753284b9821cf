"""A folder of images for each class, perhaps below one for each split, as torchvision's ImageFolder takes it."""

from __future__ import annotations

from avpt.datasets.folder import rows
from avpt.datasets.rows import Dataset

DATASET = Dataset(rows, key="image", stratified=True)  # the rows of `folder`, each image a clip
