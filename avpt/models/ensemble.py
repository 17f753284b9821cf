"""A model of sound and one of pictures that answer together, without any training of both."""

from __future__ import annotations

from torch import Tensor, nn

from avpt.models.encoder import Classifier


class Ensemble(nn.Module):
    """The mean of two classifiers' log-probabilities; where labels are several, of their logits (log-odds)."""

    def __init__(self, audio: Classifier, visual: Classifier, multi_label: bool) -> None:
        super().__init__()
        self.audio = audio
        self.visual = visual
        self.multi_label = multi_label

    def outputs(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """What evaluation records: the logits and each modality's share of them, which add up to the logits."""
        shares = [self.audio(audio).float(), self.visual(visual).float()]
        if not self.multi_label:
            shares = [logits.log_softmax(dim=1) for logits in shares]
        a, v = (share / 2 for share in shares)
        return {"logits": a + v, "audio_logits": a, "visual_logits": v}
