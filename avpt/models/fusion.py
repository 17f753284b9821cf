"""Two encoders and a fusion head, and each modality's share of the logits."""

from __future__ import annotations

import os
import re
import shlex
from typing import Literal

import torch
from torch import Tensor, nn

from avpt.errors import ConfigError
from avpt.machine.own_classes import import_class
from avpt.models.encoder import Encoder, encode
from avpt.types import MODALITIES, Modality

FusionName = Literal["concat", "sum", "film", "gated"]


class Concat(nn.Module):
    """W [a; v] + b, the paper's (arXiv 2302.03533)."""

    def __init__(self, audio_width: int, visual_width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(audio_width + visual_width, num_classes)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Logits (batch, classes) from features (batch, width)."""
        logits: Tensor = self.linear(torch.cat([audio, visual], dim=1))
        return logits


class Sum(nn.Module):
    """W_a a + b_a + W_v v + b_v."""

    def __init__(self, audio_width: int, visual_width: int, num_classes: int) -> None:
        super().__init__()
        self.audio = nn.Linear(audio_width, num_classes)
        self.visual = nn.Linear(visual_width, num_classes)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Logits (batch, classes) from features (batch, width)."""
        logits: Tensor = self.audio(audio) + self.visual(visual)
        return logits


class Film(nn.Module):
    """W (gamma(a) * v + beta(a)) + b (FiLM, Perez et al. 2018)."""

    def __init__(self, audio_width: int, visual_width: int, num_classes: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(audio_width, 2 * visual_width)
        self.linear = nn.Linear(visual_width, num_classes)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Logits (batch, classes) from features (batch, width)."""
        gamma, beta = self.modulation(audio).chunk(2, dim=1)
        logits: Tensor = self.linear(gamma * visual + beta)
        return logits


class Gated(nn.Module):
    """W (sigmoid(U a) * (V v)) + b (Kiela et al. 2018)."""

    def __init__(self, audio_width: int, visual_width: int, num_classes: int) -> None:
        super().__init__()
        self.gate = nn.Linear(audio_width, visual_width, bias=False)
        self.value = nn.Linear(visual_width, visual_width, bias=False)
        self.linear = nn.Linear(visual_width, num_classes)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Logits (batch, classes) from features (batch, width)."""
        logits: Tensor = self.linear(torch.sigmoid(self.gate(audio)) * self.value(visual))
        return logits


TRUSTED = "AVPT_FUSION"  # environment variable with classes of the user's own that a model's file may name

FUSIONS: dict[str, type[nn.Module]] = {
    "concat": Concat,
    "sum": Sum,
    "film": Film,
    "gated": Gated,
}


def find_fusion(named: str, option: str) -> type[nn.Module]:
    """The fusion of a name, or of the user's own class `package.module:Class`.

    Raises:
        ConfigError: it can't be imported, or is no module.
    """
    return FUSIONS[named] if named in FUSIONS else import_class(named, nn.Module, option, "torch.nn.Module")


def try_fusion(fusion: type[nn.Module], sizes: tuple[int, int, int], named: str) -> None:
    """Make a fusion of the user's own and give it the features of two clips; no random number of the run is drawn.

    Args:
        fusion: its class.
        sizes: of the features of sound and of pictures, and the number of classes.
        named: the option that names it, for messages.

    Raises:
        ConfigError: it can't be made or used, or what it makes are not the logits of two clips.
    """
    audio, visual, classes = sizes
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            head = fusion(audio, visual, classes).eval()
            logits = head(torch.zeros(2, audio), torch.ones(2, visual))
    except Exception as error:  # whatever the class itself raises
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError(
            f"{named} can't be used on features of {audio} and {visual} numbers and {classes} classes ({what}); "
            "--debug shows where"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes) or not logits.is_floating_point():
        made = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"{named} makes {made.removeprefix('torch.')} of the features of two clips, not logits (2, {classes})"
        )


def trusted_fusions() -> list[str]:
    """The classes that AVPT_FUSION names, with colons between them as in PATH; each has a colon of its own."""
    return re.findall(r"[^:\s]+:[^:\s]+", os.environ.get(TRUSTED, ""))


def recorded_fusion(named: str) -> type[nn.Module]:
    """The fusion that a model's file names. A class is imported only if the user says that it is trusted.

    Raises:
        ConfigError: it is a class that AVPT_FUSION does not name, or that can't be imported.
    """
    if named not in FUSIONS and named not in (trusted := trusted_fusions()):
        raise ConfigError(
            f"its fusion is the class {named!r:.100}, and using it runs that code; "
            f"if you trust it, set {TRUSTED}={':'.join([*trusted, shlex.quote(named)[:100]])}"
        )
    return find_fusion(named, TRUSTED)


class FusedModel(nn.Module):
    """The joint model; tensors `audio.*`, `visual.*`, `fusion.*`."""

    def __init__(self, audio: Encoder, visual: Encoder, fusion: str | type[nn.Module], num_classes: int) -> None:
        super().__init__()
        self.audio = audio
        self.visual = visual
        head = FUSIONS[fusion] if isinstance(fusion, str) else fusion
        self.fusion = head(audio.width, visual.width, num_classes)
        self.balance: nn.Module | None = None  # a method that training has; no answer needs it

    def forward(self, audio: Tensor, visual: Tensor, present: Tensor | None = None) -> Tensor:
        """Logits (batch, classes) from spectrograms (batch, 1, frame, mel) and frames (batch, frames, 3, h, w).

        Features are multiplied by `present` (batch, 2), 1 or 0 for audio and visual; None means that all are present.
        """
        logits: Tensor = self.fusion(*self.features(audio, visual, present))
        return logits

    def features(self, audio: Tensor, visual: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (batch, width) of both modalities, from what `forward` takes."""
        a, v = encode(self.audio, audio), encode(self.visual, visual)
        return (a, v) if present is None else (a * present[:, :1], v * present[:, 1:])

    def outputs(self, audio: Tensor | None, visual: Tensor | None) -> dict[str, Tensor]:
        """What evaluation records: the logits and each modality's share of them, which add up to the logits.

        A modality that is None is absent, and its share, which says nothing of the clip, is left out.
        """
        a = None if audio is None else encode(self.audio, audio)
        v = None if visual is None else encode(self.visual, visual)
        a = _nothing(self.audio, v) if a is None else a
        v = _nothing(self.visual, a) if v is None else v
        logits = self.fusion(a, v)
        audio_logits, visual_logits = shares(self.fusion, a, v, logits)
        outputs = {"logits": logits}
        outputs |= {} if audio is None else {"audio_logits": audio_logits}
        return outputs | ({} if visual is None else {"visual_logits": visual_logits})


def shares(fusion: nn.Module, audio: Tensor, visual: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """What each modality contributes to the logits f(a, v), (batch, classes) each; the two add up to them.

    The two-player Shapley value, zero features standing for an absent modality:
    z_a = 1/2 [f(a,v) - f(0,v) + f(a,0)], and z_v likewise with a and v swapped.
    """
    only_audio, only_visual = fusion(audio, torch.zeros_like(visual)), fusion(torch.zeros_like(audio), visual)
    return (logits - only_visual + only_audio) / 2, (logits - only_audio + only_visual) / 2


def _nothing(encoder: Encoder, other: Tensor | None) -> Tensor:
    """Zero features (batch, width) for as many clips as the other modality has."""
    assert other is not None, "a clip has sound or pictures"
    return other.new_zeros(len(other), encoder.width)


class OneModality(nn.Module):
    """A fused model that is fed one of its modalities; the features of the other are zero."""

    def __init__(self, model: FusedModel, present: Modality) -> None:
        super().__init__()
        self.model, self.present = model, present

    def outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """What evaluation records: the logits and the present modality's share of them."""
        return self.model.outputs(*(inputs if modality == self.present else None for modality in MODALITIES))
