"""Draw what joint training does to each encoder: `damage_figure.py FOLDER --out damage.png FOLDER's seeds...`.

    python recipes/damage_figure.py recipes/out/damage/visual/random/seed-* --out damage.png

Each folder is a seed of `recipes/damage.sh`. Curves are means over seeds with their range as a band: the accuracy on
val and the norm of the gradient, of each encoder alone and inside the joint model (its share of the answer). Dots are
linear probes on test, one a seed, with the mean as a line (arXiv 2302.03533, Figures 1a and 1b).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avpt.figures.curves import plot_curves
from avpt.figures.style import AUDIO, CYCLE, TWO_COLUMNS, VISUAL, apply_style
from avpt.files import artifacts
from avpt.types import MODALITIES, Modality

COLOURS = {"audio": AUDIO, "visual": VISUAL}
PALE = {"audio": CYCLE[5], "visual": CYCLE[4]}  # of what the encoders are alone
PROBES = {  # what they are called in the figure
    "alone": "alone",
    "none": "joint",
    "uniform": "joint, Uniform",
    "fust-none": "two stages",
    "fust-adaptive": "and masked",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    with apply_style():
        figure = Figure(figsize=(TWO_COLUMNS, 2.4))
        accuracy, norm, probes = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
        draw_epochs(accuracy, arguments.seeds, lambda row, side: row["val"][f"{side}accuracy"], "accuracy on val")
        draw_epochs(
            norm, arguments.seeds, lambda row, side: row["gradient_norm"][side[:-1] or "encoder"], "gradient norm"
        )
        norm.legend(fontsize=6)
        draw_probes(probes, arguments.seeds)
        figure.savefig(arguments.out, dpi=200)
    print(arguments.out)


def draw_epochs(axes: Axes, seeds: Sequence[Path], value: Callable[[dict[str, Any], str], float], label: str) -> None:
    """One value of each epoch; `value` is given an epoch's record, and `audio_`, `visual_` or nothing for one alone."""
    curves, colours = {}, {}
    for modality in MODALITIES:
        for run, name, side in (("none", f"{modality}, joint", f"{modality}_"), (modality, f"{modality}, alone", "")):
            curves[name] = [[value(row, side) for row in epochs(seed / run)] for seed in seeds]
            colours[name] = COLOURS[modality] if side else PALE[modality]
    plot_curves(axes, curves, colours)
    axes.set(xlabel="epoch", ylabel=label)


def epochs(run: Path) -> list[dict[str, Any]]:
    """The records of a run's epochs."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def draw_probes(axes: Axes, seeds: Sequence[Path]) -> None:
    """Accuracies of linear probes of each encoder: alone, and after each kind of joint training."""
    for place, name in enumerate(PROBES):
        for modality in MODALITIES:
            values = [probe(seed, modality, name) for seed in seeds]
            axes.plot([place] * len(values), values, "o", color=COLOURS[modality], alpha=0.6)
            axes.plot([place - 0.3, place + 0.3], [sum(values) / len(values)] * 2, color=COLOURS[modality])
    axes.set_xticks(range(len(PROBES)), PROBES.values(), rotation=30, ha="right")
    axes.set_ylabel("linear probe, accuracy on test")


def probe(seed: Path, modality: Modality, name: str) -> float:
    """The accuracy on test of one probe."""
    file = seed / f"probe-{modality}{'' if name == 'alone' else f'-{name}'}.safetensors"
    accuracy: float = artifacts.read_header(file)[0].metrics["accuracy"]["test"]
    return accuracy


if __name__ == "__main__":
    main()
