"""What the words of the page mean: each that stands on it is explained once, where a reader can unfold it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

from avpt.errors import listed
from avpt.report.page.blocks import Block, Command, Fold, Terms

MOST_NAMED = 3  # terms, before they are unfolded

# the term, how it is recognised on a page, and what it means
TERMS = (
    (
        "BatchNorm",
        r"BatchNorm",
        "a layer that brings every channel to mean 0 and deviation 1, and then applies a scale and a shift that it "
        "learns.",
    ),
    (
        "abnormal channel",
        r"[Aa]bnormal",
        "a channel of a BatchNorm whose scale and shift are both nearly zero: whatever comes in, next to nothing goes "
        "out, and next to no gradient comes back.",
    ),
    (
        "ABRi",
        r"\bABRi\b",
        "blends each BatchNorm of a pre-trained encoder with a fresh one, by a share (alpha) that it learns, so that "
        "abnormal channels can come to life.",
    ),
    (
        "FusT",
        r"\bFusT\b",
        "first trains each encoder alone and notes its confidence in each clip, and then trains both together while "
        "masking what is easy.",
    ),
    (
        "confidence",
        r"[Cc]onfidence",
        "how probable an encoder that is trained alone finds the true class of a training clip, mean over its epochs.",
    ),
    (
        "mask ratio",
        r"[Mm]ask ratio",
        "the share of a clip's input in one modality that is masked, of all its patches.",
    ),
    (
        "masking",
        r"\b[Mm]ask",
        "hides patches of the modality that is the surer one of a clip, so that the other encoder must learn too: "
        "`adaptive`, the further its confidence is ahead the more; `uniform`, of all clips the mean of that.",
    ),
    (
        "balancing",
        r"\b[Bb]alanc",
        "changes joint training in another way (`--balance`) for the same purpose, that the modality which is learnt "
        "sooner does not hold the other back.",
    ),
    (
        "ogm-ge",
        r"\bogm-ge\b",
        "a balancing method (Peng et al. 2022): shrinks the gradient of the encoder that is ahead, and adds noise.",
    ),
    (
        "share of a modality",
        r"(audio|visual) share|[Ss]hares? of the joint answer|by its share",
        "what sound or pictures add to the joint model's answer (a Shapley value: the mean of what each adds to "
        "nothing and to the other); its accuracy is that of the answer which the share alone "
        "would give. It is not trained to answer alone.",
    ),
    (
        "linear probe",
        r"[Ll]inear probe",
        "one linear layer that is trained to tell the classes apart by the features of an encoder, which stays as it "
        "is: how much these features tell.",
    ),
    (
        "gradient norm",
        r"gradient's? norm|[Nn]orm of the gradient|[Gg]radient that reaches",
        "the length of all gradients of an encoder together: how much training moves it in a step.",
    ),
    (
        "macro F1",
        r"macro F1",
        "the mean over the classes of F1, which is high only if most clips of a class are found and little else is "
        "taken for it.",
    ),
    (
        "mAP",
        r"\bmAP\b",
        "mean average precision, over the classes: how far up the right clips come if sorted by class.",
    ),
    (
        "seed",
        r"\bseeds?\b",
        "runs of several seeds differ in nothing but chance: first weights, order of the clips, what is masked.",
    ),
    (
        "sign test",
        r"[Ss]ign test|McNemar",
        "counts the clips that only one of two models answers right, and asks whether chance alone would share them "
        "out so unevenly; with one seed it is McNemar's test.",
    ),
    (
        "p",
        r"\bp [=<] ",
        "how often chance alone would make a difference of this size or more, if there were none; a small p speaks "
        "against chance.",
    ),
    (
        "store",
        r"\bstores?\b",
        "all clips as numbers that a network can be trained on, as `avpt preprocess` writes them.",
    ),
    (
        "init",
        r"\binit\b",
        "the weights that an encoder starts from, as `avpt init` writes them.",
    ),
    (
        "95 % interval",
        r"95 % interval",
        "a range that holds the true difference in 95 of 100 experiments like this one.",
    ),
)


def explain_terms(shown: Iterable[Any]) -> list[Block]:
    """Explain the terms that stand in some blocks, sections or verdicts, folded."""
    text = "\n".join(words for one in shown for words in words_of(one))
    pairs = [(term, meaning) for term, pattern, meaning in TERMS if re.search(pattern, text)]
    return (
        [Fold(f"What is meant by {listed([term for term, _ in pairs], MOST_NAMED)}", [Terms(pairs)])] if pairs else []
    )


def words_of(shown: Any) -> Iterator[str]:
    """All words of a part of the page but for commands to be copied."""
    if isinstance(shown, str):
        yield shown
    elif isinstance(shown, list | tuple):
        for one in shown:
            yield from words_of(one)
    elif dataclasses.is_dataclass(shown) and not isinstance(shown, Command):
        for field in dataclasses.fields(shown):
            yield from words_of(getattr(shown, field.name))
