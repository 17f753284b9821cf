"""Mixing clips with one another, and averaging weights over the steps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from avpt.machine.seeds import seed_for
from avpt.types import Batch


def mix_clips(batch: Batch, step: int, *, alpha: float, num_classes: int, seed: int, part: int) -> Batch:
    """Mix each clip of a batch of one modality with the one before it (mixup, Zhang et al., ICLR 2018).

    Their weights are lambda and 1 - lambda, with one lambda ~ Beta(alpha, alpha) for the batch; `targets` hold them.
    The label becomes that of the weightier clip; when multi-label, all labels of the two.

    Args:
        batch: with one input.
        step: counted over the run.
        alpha: of the Beta distribution.
        num_classes: of the store.
        seed: of the draw, together with the step and the part.
        part: which of the processes this is.
    """
    from torchvision import tv_tensors  # which load torch's compiler
    from torchvision.transforms import v2

    values = batch.inputs[0]
    images = tv_tensors.Video(values) if values.ndim == 5 else values
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for(seed, step, "mixup", part))
        mixed, targets = v2.MixUp(alpha=alpha, num_classes=num_classes)(images, batch.labels)
    labels = targets.argmax(dim=1) if batch.labels.ndim == 1 else (targets > 0).float()
    return replace(batch, inputs=(mixed.as_subclass(Tensor),), labels=labels, targets=targets)


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of a model that follows it, w <- d w + (1 - d) w_model after each step, running statistics too.

    It starts at the model after the first step. d is `decay`, or (1 + n) / (10 + n) after n steps as long as that is
    less (the warm-up of tf.train.ExponentialMovingAverage): else a short run's average would stay near its start.
    BatchNorm's counts are copied as they are.
    """

    def follow(averages: PARAM_LIST, values: PARAM_LIST, steps: Tensor | int) -> None:
        if averages[0].is_floating_point():
            warm = (1 + int(steps)) / (10 + int(steps))
            get_ema_multi_avg_fn(min(decay, warm))(averages, values, steps)  # type: ignore[no-untyped-call]
        else:  # torch would round the average of two counts down, even of two that are equal
            torch._foreach_copy_(averages, values)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
