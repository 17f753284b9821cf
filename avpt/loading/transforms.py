"""From stored values to a model's input: sampling, augmentation, normalisation, masking."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from platform import machine

import torch
import torchaudio
from torch import Tensor
from torch.nn.functional import interpolate

from avpt.files.records import IMAGENET, Colour
from avpt.machine.light_imports import without_compiler
from avpt.machine.seeds import seed_for

with without_compiler():
    from torchvision.transforms import RandomResizedCrop


def clip_seed(seed: int, epoch: int, clip_id: str, use: str) -> int:
    """The seed for one random use of a clip in an epoch, whichever worker loads the clip."""
    return seed_for(seed, epoch, use, clip_id)


def segment_bounds(num_frames: int, num_segments: int) -> list[tuple[int, int]]:
    """Cut a clip's frames into equal segments, each (first, one past the last), never empty.

    A clip with fewer frames than segments repeats frames.
    """
    edges = [i * num_frames // num_segments for i in range(num_segments + 1)]
    return [(low, max(low + 1, high)) for low, high in pairwise(edges)]


def draw_frames(num_frames: int, num_segments: int, generator: torch.Generator | None) -> list[int]:
    """One frame from each segment: a random one with a generator (training), else the middle one (evaluation)."""
    bounds = segment_bounds(num_frames, num_segments)
    if generator is None:
        return [(low + high - 1) // 2 for low, high in bounds]
    return [int(torch.randint(low, high, (), generator=generator)) for low, high in bounds]


def draw_present(dropout: float, seed: int) -> Tensor:
    """(2,) float32, 1 for audio and visual; for the share `dropout` of all seeds, one of the two is 0."""
    withheld, which = torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist()
    present = torch.ones(2)
    if withheld < dropout:
        present[int(which < 0.5)] = 0.0
    return present


def training_frames(image_size: int, crop_scale: tuple[float, float], flip: bool) -> Callable[[Tensor], Tensor]:
    """A random crop and flip of frames (3, height, width) uint8; a crop scale of (1, 1) keeps the whole frame."""
    return partial(_augment_frame, size=[image_size, image_size], crop_scale=crop_scale, flip=flip)


def _augment_frame(frame: Tensor, *, size: list[int], crop_scale: tuple[float, float], flip: bool) -> Tensor:
    if crop_scale != (1.0, 1.0):
        top, left, height, width = RandomResizedCrop.get_params(frame, list(crop_scale), [3 / 4, 4 / 3])
        crop = frame[None, :, top : top + height, left : left + width]
        frame = crop.contiguous(memory_format=torch.channels_last)[0]  # which torch scales in less time
    frame = resize(frame, size)
    return frame.flip(-1) if flip and torch.rand(1) < 0.5 else frame


def resize(frame: Tensor, size: list[int]) -> Tensor:
    """Scale a frame (3, height, width) uint8, exactly as torchvision's v2 does, whose import loads torch's compiler."""
    if list(frame.shape[-2:]) == size:
        return frame
    frame = frame[None]
    if frame.is_contiguous(memory_format=torch.channels_last):  # as it is with RGB rows: torch should see that
        frame = frame.as_strided(frame.shape, (frame.numel(), *frame.stride()[1:]))
    in_bytes = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or machine() in ("aarch64", "arm64")
    values = frame if in_bytes else frame.to(torch.float32)
    scaled: Tensor = interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    return scaled if in_bytes else scaled.round_().to(torch.uint8)


def evaluation_frames(image_size: int) -> Callable[[Tensor], Tensor]:
    """Scaling of whole frames to the encoder's size."""
    return partial(resize, size=[image_size, image_size])


def spec_augment(fbank: Tensor, frequency: int, time: int, fill: float) -> Tensor:
    """Mask one random band of mel bins and one random run of frames (Park et al., SpecAugment, 2019).

    Args:
        fbank: (frames, mel), before normalisation.
        frequency: widest band, mel bins.
        time: longest run, frames.
        fill: value of the masked part; the store's mean becomes 0 when normalised.
    """
    masked = fbank.float().T[None]  # torchaudio's layout: (channel, mel, frame)
    for widest, mask in (
        (frequency, torchaudio.transforms.FrequencyMasking),
        (time, torchaudio.transforms.TimeMasking),
    ):
        if widest:
            masked = mask(widest)(masked, mask_value=fill)
    return masked[0].T.to(fbank.dtype)


def normalise_audio(fbank: Tensor, mean: float, std: float) -> Tensor:
    """(x - mean) / (2 * std), as the released code of arXiv 2302.03533 does (after AST, Gong et al. 2021).

    In place if the values are float32 already.
    """
    return fbank.float().sub_(mean).div_(2 * std)


def normalise_visual(frames: Tensor, mean_std: tuple[Colour, Colour] = IMAGENET) -> Tensor:
    """Pixels of 0 to 255 (..., 3, height, width) to float32 with a mean and standard deviation, where 1 is white.

    In place if they are float32 already.
    """
    mean, std = (_of_255(tuple(colour), frames.device) for colour in mean_std)
    return frames.float().sub_(mean).div_(std)


@cache
def _of_255(colour: Colour, device: torch.device) -> Tensor:
    """(3, 1, 1): a colour on the scale of 0 to 255, sent to a device once, as it waits for what is sent."""
    return (255 * torch.tensor(colour)).view(3, 1, 1).to(device)


def num_patches(height: int, width: int, patch: tuple[int, int]) -> int:
    """The number of whole patches that fit into an input."""
    return (height // patch[0]) * (width // patch[1])


def mask_patches(inputs: Tensor, scores: Tensor, num_masked: Tensor, patch: tuple[int, int]) -> Tensor:
    """Set, in place, whole patches of each input to 0, which after normalisation is the mean (FusT, arXiv 2302.03533).

    Args:
        inputs: (inputs, channels, height, width), normalised.
        scores: (inputs, patches) random; an input's lowest-scored patches are masked.
        num_masked: (inputs,) how many.
        patch: (height, width); what is left over on the right and bottom is never masked.
    """
    height, width = inputs.shape[-2:]
    rows, columns = height // patch[0], width // patch[1]
    assert scores.shape == (len(inputs), rows * columns)
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
    masked = (rank < num_masked[:, None]).view(-1, 1, rows, columns)
    pixels = masked.repeat_interleave(patch[0], dim=2).repeat_interleave(patch[1], dim=3)
    covered = torch.nn.functional.pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))
    return inputs.masked_fill_(covered, 0.0)
