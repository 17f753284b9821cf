"""Known data sets, one per module: their lists and media become rows of a manifest."""

from avpt.datasets import audioset, crema_d, esc50, folder, image_folder, kinetics_sounds, vggsound
from avpt.datasets.rows import Dataset

DATASETS: dict[str, Dataset] = {
    "audioset": audioset.DATASET,
    "crema-d": crema_d.DATASET,
    "esc50": esc50.DATASET,
    "folder": folder.DATASET,
    "image-folder": image_folder.DATASET,
    "kinetics-sounds": kinetics_sounds.DATASET,
    "vggsound": vggsound.DATASET,
}
