"""What a model answers for clips, and how that looks: a table, CSV, JSON lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avpt.commands._segments import format_seconds
from avpt.text import for_sheet, format_count
from avpt.types import MODALITIES, FilePath, Modality, Phrase, Table

Ranking = list[tuple[str, float]]  # classes with their probabilities, best first


@dataclass(frozen=True)
class Answer:
    """What the model answers for a clip, or why it can't."""

    clip: str  # the file as it was given, or the manifest's id
    modalities: tuple[Modality, ...] = ()  # that the answer is based on
    rankings: dict[str, Ranking] = field(default_factory=dict)  # `joint`; of a fused model also one per modality
    partial: tuple[str, ...] = ()  # what users should know of how the clip was decoded
    looked_at: dict[Modality, tuple[float, float]] = field(default_factory=dict)  # start and end in its file, seconds
    seconds: float | None = None  # the clip's length, None where its file does not say
    longer: bool = False  # far longer than what was looked at
    error: str | None = None
    piece: tuple[float, float] | None = None  # where a piece of a file starts and ends, in seconds
    pieces: int | None = None  # number of pieces that this is the mean of

    @property
    def name(self) -> str:
        """What tables and messages call the clip."""
        if self.piece is not None:
            return f"{self.clip} {format_seconds(self.piece[0])}-{format_seconds(self.piece[1])} s"
        return self.clip if self.pieces is None else f"{self.clip} mean of {self.pieces}"


def part_of(answer: Answer) -> str:
    """Which part of its file a clip's answer is from, in words."""
    parts = {modality: f"{start:g} to {end:.2f} s" for modality, (start, end) in answer.looked_at.items()}
    if len(set(parts.values())) <= 1:
        shown = next(iter(parts.values()), "")
    else:
        shown = ", ".join(f"{modality} {part}" for modality, part in parts.items())
    begins_first = all(start == 0 for start, _ in answer.looked_at.values())
    return shown + (f" of {answer.seconds:.2f} s" if shown and answer.seconds is not None and begins_first else "")


def record_of(answer: Answer) -> dict[str, Any]:
    """The record of a JSON line: `top` ranks by the logits, `audio` and `visual` by each modality's share of them."""
    record: dict[str, Any] = {"clip": answer.clip, "error": answer.error, "modalities": list(answer.modalities)}
    record |= {
        "partial": list(answer.partial),
        "looked_at": {name: list(part) for name, part in answer.looked_at.items()},
    }
    record |= {"seconds": None if answer.seconds is None else round(answer.seconds, 2)}
    if answer.piece is not None or answer.pieces is not None:
        record |= {"piece": answer.piece and list(answer.piece), "pieces": answer.pieces}
    for name, ranking in answer.rankings.items():
        ranked = [{"label": label, "probability": probability} for label, probability in ranking]
        record["top" if name == "joint" else name] = ranked
    return record


def columns_of(answers: Sequence[Answer]) -> list[str]:
    """The names of the rankings that any answer has."""
    return [name for name in ("joint", *MODALITIES) if any(name in answer.rankings for answer in answers)]


def csv_of(answers: Sequence[Answer], top: int) -> str:
    """One row per clip; label_1, probability_1, audio_label_1, ... down to the longest ranking."""
    names = columns_of(answers)
    longest = max((len(ranking) for answer in answers for ranking in answer.rankings.values()), default=top)
    prefixes = {name: "" if name == "joint" else f"{name}_" for name in names}
    ranked = [
        f"{prefixes[name]}{what}_{i + 1}" for name in names for i in range(longest) for what in ("label", "probability")
    ]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["clip", "modalities", "error", "partial", "looked_at", *ranked])
    for answer in answers:
        cells = [
            answer.name,
            " ".join(answer.modalities),
            answer.error or "",
            "; ".join(answer.partial),
            part_of(answer),
        ]
        for name in names:
            ranking = answer.rankings.get(name, [])
            cells += [cell for label, probability in ranking for cell in (label, f"{probability:.6g}")]
            cells += ["", ""] * (longest - len(ranking))
        writer.writerow(map(for_sheet, cells))
    return text.getvalue()


def table_of(model: Path, answers: Sequence[Answer]) -> Table:
    """One line per class, with the clip's name on the first of its lines."""
    names = columns_of(answers) or ["joint"]
    rows: list[tuple[str, ...]] = []
    for answer in answers:
        if answer.error is not None:
            rows.append((FilePath(answer.name), *["no answer"] * len(names)))
        for i in range(max((len(ranking) for ranking in answer.rankings.values()), default=0)):
            cells: list[str] = [FilePath(answer.name) if i == 0 else ""]
            for name in names:
                ranking = answer.rankings.get(name, [])
                # in one cell, as a table that is too wide is parted between its columns
                cells.append(Phrase(f"{ranking[i][1]:.3f} {ranking[i][0]}") if i < len(ranking) else "")
            rows.append(tuple(cells))
    heads = names if len(names) > 1 else ["label"]
    longer = [answer for answer in answers if answer.longer]
    first = "the first: " if len(longer) > 1 else ""
    part = f", of {len(longer)} only a part: {first}{part_of(longer[0])}" if longer else ""
    count = sum(answer.pieces is None for answer in answers)
    return Table(f"{model} on {format_count(count, 'clip')}{part}", ("clip", *heads), rows, left=1 + len(heads))
