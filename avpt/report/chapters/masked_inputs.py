"""Masked inputs as the network saw them."""

from __future__ import annotations

import torch

from avpt.errors import AvptError
from avpt.files import artifacts
from avpt.files.model_headers import read_input
from avpt.loading.dataset import ClipDataset, Masking, grid
from avpt.loading.loader import Loader
from avpt.loading.masking import count_patches, most_masked, plan_masking
from avpt.options import FuseConfig, restore_config
from avpt.report.chapters.dominance import read_ratios
from avpt.report.drawing import SPECTROGRAM, name_clip, name_label, show_input
from avpt.report.experiment import Experiment, explain_error, explain_missing
from avpt.report.page.blocks import Block, Card, Cards, Text
from avpt.runs import training_run
from avpt.runs.lineage import Node
from avpt.store.splits import training_splits
from avpt.store.store import Store
from avpt.types import MODALITIES

LEGEND = (
    "What is masked is blue in the audio and orange in the visual input. Patches are those of the whole input, with "
    "the padding (black) behind a short sound; the mask ratio times their number, rounded down, is masked. "
    f"{SPECTROGRAM}"
)


def show_masked_inputs(experiment: Experiment, nodes: list[Node], clips: int) -> list[Block]:
    """Show clips with and without their masks, for each run that masks (of several seeds the first)."""
    blocks: list[Block] = []
    for node in {experiment.group_of(node): node for node in reversed(nodes)}.values():
        if node.option("mask") == "none":
            continue
        store = experiment.origin(node, "store")
        if store is None:
            blocks.append(Text(explain_missing(experiment, node, "store"), missing=True))
            continue
        try:
            blocks.append(show_run_inputs(experiment, node, Store(store.path), clips))
        except (AvptError, OSError, KeyError, ValueError) as error:
            blocks.append(Text(explain_error(error), missing=True))
    return [Text(LEGEND), *blocks] if blocks else [Text("None of these runs masks anything.")]


def show_run_inputs(experiment: Experiment, node: Node, store: Store, clips: int) -> Block:
    """Show the clips of which a run masks most, as they were in its first epoch."""
    config = restore_config(node.kind, node.config)
    assert isinstance(config, FuseConfig)
    index = training_splits(store, MODALITIES, config.val_fraction)["train"]
    ratios = read_ratios(node)
    there = {m: torch.stack([ratios[m][clip_id] for clip_id in index.ids]) for m in MODALITIES}
    spec = read_input(node.path, artifacts.read_header(artifacts.model_file(node.path))[0])
    masking = plan_masking(there, spec, config.patch, warn=False)
    most = most_masked(masking, 2 * clips)
    positions = [position for position in most if any(masking.num_masked[m][position] for m in MODALITIES)][:clips]
    if not positions:
        return Text(f"`{experiment.name(node)}` masks nothing: all its ratios are less than one patch.")

    def batch(mask: Masking | None) -> tuple[torch.Tensor, ...]:
        dataset = ClipDataset(
            *(index, MODALITIES, spec, store.settings["frame_codec"]),
            seed=config.seed,
            augmentation=training_run.augmentation(config),
            masking=mask,
        )
        loader = Loader(dataset, config.batch_size, device=torch.device("cpu"), workers=0, shuffle_seed=config.seed)
        return tuple(values.clone() for values in loader.clips(0, positions).inputs)

    plain_inputs, masked = batch(None), batch(masking)
    patches = {m: count_patches(m, grid(spec, m), config.patch[m], warn=False) for m in MODALITIES}
    cards = []
    for i, position in enumerate(positions):
        pictures, shares, counts = [], [], []
        for m, modality in enumerate(MODALITIES):
            ratio = float(there[modality][position])
            shares.append(f"{modality} {ratio:.2f}")
            counts.append(f"{modality} {int(masking.num_masked[modality][position])} of {patches[modality]}")
            whole, versions = plain_inputs[m][i], list[tuple[torch.Tensor | None, str]]()
            if masking.num_masked[modality][position]:
                versions += [(None, "as it is"), (masked[m][i], "masked")]
            else:
                versions.append((None, "not masked"))
            what = "spectrogram" if modality == "audio" else "frames"
            pictures += [
                show_input(modality, whole, hidden, spec, f"{what} {how}, ratio {ratio:.2f}", how)
                for hidden, how in versions
            ]
        lines = [f"class {name_label(store, index, position)}", f"mask ratio: {', '.join(shares)}"]
        lines.append(f"masked patches: {', '.join(counts)}")
        cards.append(Card(name_clip(index.ids[position]), pictures, lines))
    return Cards(f"{experiment.name(node)}, epoch 1", cards)
