"""From a decoded clip to a model's input without a store, with the same values as through one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avpt.loading import transforms
from avpt.loading.dataset import InputSpec
from avpt.media.clip import ClipSettings, DecodedClip
from avpt.media.codecs import decode_frame
from avpt.types import Modality


def clip_settings(spec: InputSpec) -> ClipSettings:
    """The settings with which the clips were decoded that a model was trained on."""
    names = ClipSettings.__dataclass_fields__.keys() & InputSpec.__dataclass_fields__.keys()
    return ClipSettings(**{name: getattr(spec, name) for name in names})


def clip_inputs(clip: DecodedClip, spec: InputSpec) -> dict[Modality, Tensor]:
    """A batch of one clip as evaluation sees it: audio (1, 1, frame, mel), visual (1, frames, 3, height, width).

    What the clip lacks is left out.
    """
    inputs: dict[Modality, Tensor] = {}
    if clip.num_audio_frames:
        fbank = torch.from_numpy(clip.fbank)
        inputs["audio"] = transforms.normalise_audio(fbank[None, None], spec.mean, spec.std)
    if clip.frames:
        scaled, pictures = transforms.evaluation_frames(spec.image_size), []
        for number in transforms.draw_frames(len(clip.frames), spec.num_frames, None):
            height, width = (int(side) for side in clip.sizes[number])
            encoded = np.frombuffer(clip.frames[number], dtype=np.uint8).copy()
            pictures.append(scaled(decode_frame(encoded, spec.frame_codec, height, width)))
        inputs["visual"] = transforms.normalise_visual(torch.stack(pictures)[None], spec.colours)
    return inputs
