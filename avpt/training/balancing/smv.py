"""Sample-level modality valuation, which shows clips again by the modality that says less of them."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from avpt.models.fusion import FusedModel
from avpt.training.balancing.method import Balancing, Joint, PlainClips
from avpt.types import MODALITIES

CHUNK = 1024  # clips that go through the fusion head together


class Smv(Balancing):
    """Sample-level modality valuation (Wei et al., CVPR 2024, arXiv 2309.06255), its sample-level form.

    After some epochs of plain training, before each epoch, of each training clip in evaluation mode: v = 2 if the
    joint answer is right, else 0; v_u = 1 if it is right with the features of the other modality zero, else 0; and
    phi_audio = (v_audio + v - v_visual) / 2, phi_visual alike. In the epoch the clip comes once as it is, and for
    phi_u = 0.5, 0, -0.5 another 1, 2, 3 times with the features of the other modality zero. The copies are augmented
    and masked on their own; the sum of the losses is over clips and copies alike.

    One pass over train without gradients before each epoch, and up to five times the steps in it: a clip that is
    answered wrongly comes five times, one that is answered rightly once or twice. No memory to speak of.

    Args:
        joint: the run.
        begin: the first epoch with copies, counted from 0: so many come before it.
    """

    ranges: ClassVar = {"begin": (0, 100_000)}
    one_label = True
    through_encoders = False

    def __init__(self, joint: Joint, *, begin: int = 5) -> None:
        super().__init__(joint)
        self.begin, self.world = begin, joint.world
        self.joint = (joint.model,)  # in which this is a submodule

    @property
    def first_epoch(self) -> int:
        """The first epoch, from 0, in which it differs from plain training."""
        return self.begin

    def begin_epoch(self, epoch: int, clips: PlainClips) -> Tensor | None:
        """The copies of the epoch."""
        if epoch < self.begin:
            return None
        return self.world.first(partial(self._copies, clips.outputs("train")))

    @torch.no_grad()
    def _copies(self, outputs: dict[str, Tensor]) -> Tensor:
        (model,), labels = self.joint, outputs["labels"]
        right = [
            answers(model, audio, visual) == labels
            for audio, visual in (
                (outputs["audio"], torch.zeros_like(outputs["visual"])),
                (torch.zeros_like(outputs["audio"]), outputs["visual"]),
            )
        ]
        return copies(outputs["logits"].argmax(dim=1) == labels, *right)


def answers(model: FusedModel, audio: Tensor, visual: Tensor) -> Tensor:
    """(clips,) the classes that the fusion head answers from features on the CPU."""
    device = next(model.parameters()).device
    parts = [slice(first, first + CHUNK) for first in range(0, len(audio), CHUNK)]
    logits = [model.fusion(audio[part].to(device), visual[part].to(device)) for part in parts]
    return torch.cat([values.argmax(dim=1).cpu() for values in logits])


def copies(both: Tensor, audio: Tensor, visual: Tensor) -> Tensor:
    """The copies (n, 3) of clips, from whether each (clips,) is answered rightly by both and by either modality."""
    value, of_audio, of_visual = 2.0 * both, audio.double(), visual.double()
    phi = torch.stack([of_audio + value - of_visual, of_visual + value - of_audio]) / 2
    counts = (2 - 2 * phi).clamp(min=0).long()
    kinds = []
    for number, _ in enumerate(MODALITIES):
        positions = torch.arange(len(both)).repeat_interleave(counts[number])
        there = torch.zeros(len(positions), len(MODALITIES), dtype=torch.int64)
        there[:, number] = 1
        kinds.append(torch.cat([positions[:, None], there], dim=1))
    return torch.cat(kinds)
