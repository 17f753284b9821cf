"""`avpt predict`: clip files in, labels with their probabilities out."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from avpt.commands._answers import Answer, csv_of, part_of, record_of, table_of
from avpt.commands._segments import cut, seconds_of
from avpt.datasets.media_files import COLUMN_OF
from avpt.errors import ConfigError, listed
from avpt.files.content_kinds import what_it_is
from avpt.files.locks import claim
from avpt.files.model_headers import WITH_CLASSES, read_input, read_model
from avpt.files.outputs import write_text
from avpt.files.reuse import check_ours, is_there, must_write
from avpt.machine.progress import track
from avpt.machine.workers import pool_workers
from avpt.options import PredictConfig
from avpt.store.manifest import MEDIA_COLUMNS, Clip, read_manifest
from avpt.text import as_json, format_count
from avpt.types import MODALITIES, Report

if TYPE_CHECKING:
    import torch

    from avpt.media.clip import ClipSettings, DecodedClip
    from avpt.runs.trained_model import TrainedModel
    from avpt.store.store import Failure

log = logging.getLogger(__name__)

GIB = 2**30


def run(config: PredictConfig) -> Report:
    """Decode the clips in workers as `preprocess` does, and give each to the model as it comes."""
    read_input(config.model, read_model(config.model, *WITH_CLASSES))  # refused before torch is loaded
    clips = find_clips(config)
    if config.out is None:
        return report(config, answer_all(config, clips))
    with claim(config.out):
        existing = check_ours(config.out, is_ours, "this command") if is_there(config.out) else None
        answers = answer_all(config, clips)
        result = report(config, answers)
        text = result.text.encode()
        if must_write(config.out, text, existing, "holds other answers", option="--out", overwrite=config.overwrite):
            write_text(config.out, result.text)
    return replace(result, text="", outputs=(config.out,))


def find_clips(config: PredictConfig) -> list[Clip]:
    """Every clip that is asked for: the rows of a manifest, or files, those in folders among them.

    Raises:
        ConfigError: a folder holds no media.
    """
    if config.manifest is not None:
        return list(read_manifest(config.manifest, root=config.root, labelled=False).clips)
    clips = []
    for path in config.files or ():
        if not path.is_dir():
            clips.append(clip_of(path))
            continue
        inside = sorted(file for file in path.rglob("*") if not (file.is_dir() or file.name.startswith(".")))
        media = [file for file in inside if file.suffix[1:].lower() in COLUMN_OF]
        if not media:
            what = f"is {what} and " if (what := what_it_is(path)) else ""
            raise ConfigError(f"{path} {what}holds no media file; give clips, or --manifest for folders of frames")
        if others := [str(file) for file in inside if file.suffix[1:].lower() not in COLUMN_OF]:
            log.info(
                "%s left out of %s: no media by the name (%s)",
                format_count(len(others), "file"),
                path,
                listed(others, 3),
            )
        clips += map(clip_of, media)
    return clips


def clip_of(path: Path) -> Clip:
    """A file as a manifest's row: its suffix tells an image; of other files all sound and pictures are used."""
    column = "frames" if COLUMN_OF.get(path.suffix[1:].lower()) == "frames" else "video"
    written = tuple(str(path) if column == name else "" for name in MEDIA_COLUMNS)
    shown = os.fsencode(path).decode(errors="replace")
    return Clip(shown, (), "test", Path.cwd(), written, None, None)


def is_ours(content: bytes) -> bool:
    """Whether this command may have written a file."""
    return content.startswith((b'{"audio":', b'{"clip":', b"clip,modalities,error,"))


def answer_all(config: PredictConfig, clips: Sequence[Clip]) -> list[Answer]:
    """An answer for each clip; one that is cut into pieces gets an answer for each of them, then their mean."""
    if config.segment is None:
        return label(config, clips)
    hop = config.hop or config.segment
    pieces = [(row, times) for row, clip in enumerate(clips) for times in times_of(clip, config.segment, hop)]
    rows = [replace(clips[row], start=times[0], end=times[1]) if times else clips[row] for row, times in pieces]
    labelled = zip(pieces, label(config, rows), strict=True)
    answers: list[Answer] = []
    for row, group in groupby(labelled, key=lambda one: one[0][0]):
        parts = [replace(answer, piece=times) for (_, times), answer in group]
        answers += [shortlist(answer, config.top) for answer in parts]
        if parts[0].piece is not None:
            answers.append(shortlist(mean_of(clips[row].id, parts), config.top))
    return answers


def times_of(clip: Clip, segment: float, hop: float) -> list[tuple[float, float] | None]:
    """Start and end of each piece of a file; None for one that is not cut: a picture, or no longer than a piece."""
    seconds = seconds_of([clip.video]) if clip.video else None
    return list(cut(seconds, segment, hop, "keep")) or [None] if seconds else [None]


def mean_of(clip: str, parts: Sequence[Answer]) -> Answer:
    """The mean of the pieces' probabilities, over those that have an answer."""
    answered = [part for part in parts if part.error is None]
    if not answered:
        return Answer(clip, error=parts[0].error, pieces=0)
    rankings = {}
    for name in dict.fromkeys(name for part in answered for name in part.rankings):
        probabilities = [dict(part.rankings[name]) for part in answered if name in part.rankings]
        means = {label: fmean(one[label] for one in probabilities) for label in probabilities[0]}
        rankings[name] = sorted(means.items(), key=lambda pair: -pair[1])
    present = tuple(modality for modality in MODALITIES if any(modality in part.modalities for part in answered))
    spans = {m: [part.looked_at[m] for part in answered if m in part.looked_at] for m in present}
    looked_at = {m: (min(start for start, _ in parts), max(end for _, end in parts)) for m, parts in spans.items()}
    return Answer(clip, present, rankings, looked_at=looked_at, pieces=len(answered))


def shortlist(answer: Answer, top: int) -> Answer:
    """The answer with its best classes alone."""
    return replace(answer, rankings={name: ranking[:top] for name, ranking in answer.rankings.items()})


def label(config: PredictConfig, clips: Sequence[Clip]) -> list[Answer]:
    """Decode clips in workers and answer them in this process; the answers are in the order of the clips."""
    log.info("loading %s", config.model)
    from avpt.commands._shards import Task, decode_task, outcome_of
    from avpt.engines.local import run_isolated
    from avpt.loading.clip_inputs import clip_settings
    from avpt.runs.trained_model import load_trained
    from avpt.training import runtime

    trained = load_trained(config.model)
    device = runtime.start(0, config.device)  # nothing is drawn
    trained.model.to(device)
    settings = clip_settings(trained.input)
    if len(trained.modalities) == 1:  # faults of the other modality do not matter
        settings = replace(settings, allow_missing="visual" if trained.modalities == ("audio",) else "audio")
    memory = int(config.worker_memory * GIB)
    results = run_isolated(
        decode_task,
        (Task("", row, without_unused_pictures(clip, trained), settings, memory) for row, clip in enumerate(clips)),
        workers=pool_workers(config.workers, len(clips)),
        timeout=config.clip_timeout,
        memory=memory,
        preload="avpt.media.decode",
    )
    answers: dict[int, Answer] = {}
    failed = 0
    with closing(results), track(len(clips), "predict") as show:
        show(0, 0)
        for task, result in results:
            clip = clips[task.row]
            top = config.top if config.segment is None else None  # means are taken over all classes
            outcome = outcome_of(task, result, "raise --worker-memory")
            labelled = answers[task.row] = answer(clip, outcome, settings, trained, top, device)
            if labelled.error is not None:
                failed += 1
                log.warning("%s: %s", labelled.clip, labelled.error)
            for what in labelled.partial:
                log.warning("%s: %s", labelled.clip, what)
            show(len(answers), failed)
    longer = [answers[row] for row in range(len(clips)) if answers[row].longer]
    if longer:
        span = min(settings.span(modality) for modality in longer[0].modalities)
        first = longer[0].clip if config.manifest else Path(longer[0].clip).name  # one line; the table has the path
        log.warning(
            "of %d of %d clips only the beginning was looked at (first %s: %s); --segment %g looks at all of it",
            *(len(longer), len(clips), first, part_of(longer[0]), span),
        )
    return [answers[row] for row in range(len(clips))]


def without_unused_pictures(clip: Clip, trained: TrainedModel) -> Clip:
    """The clip without the pictures of a whole video, where the model takes audio alone and won't look at them."""
    if trained.modalities != ("audio",) or clip.start is not None or clip.end is not None or clip.video is None:
        return clip
    return replace(clip, written=("", clip.written[1] or clip.written[0], ""))


def answer(
    clip: Clip,
    decoded: DecodedClip | Failure,
    settings: ClipSettings,
    trained: TrainedModel,
    top: int | None,
    device: torch.device,
) -> Answer:
    """Give one clip to the model; a modality that it lacks counts as zero features in a fused model."""
    import torch

    from avpt.loading.clip_inputs import clip_inputs
    from avpt.models.encoder import Classifier
    from avpt.models.fusion import FusedModel
    from avpt.store.store import Failure

    if isinstance(decoded, Failure):
        return Answer(clip.id, error=decoded.error)
    inputs = {name: values.to(device) for name, values in clip_inputs(decoded, trained.input).items()}
    present = [modality for modality in trained.modalities if modality in inputs]
    if not present:
        return Answer(clip.id, error=f"has no {'sound' if trained.modalities == ('audio',) else 'pictures'}")
    with torch.inference_mode():
        if isinstance(trained.model, Classifier):
            outputs = trained.model.outputs(inputs[present[0]])
        else:
            assert isinstance(trained.model, FusedModel)
            outputs = trained.model.outputs(inputs.get("audio"), inputs.get("visual"))
    rankings = {}
    for name, logits in outputs.items():
        scores = logits[0].cpu().double()  # some devices (mps) have no float64
        probabilities = scores.sigmoid() if trained.multi_label else scores.softmax(dim=0)
        best = probabilities.sort(descending=True, stable=True)
        pairs = zip(best.indices.tolist()[:top], best.values.tolist()[:top], strict=True)
        rankings[name.removesuffix("logits").rstrip("_") or "joint"] = [(trained.classes[i], p) for i, p in pairs]
    wrong = tuple(f"{trouble.modality} {trouble.what}" for trouble in decoded.troubles if trouble.modality in present)
    start, lengths = clip.start or 0.0, {name: decoded.seconds[name] for name in present if name in decoded.seconds}
    spans = {name: min(span, lengths.get(name, span)) for name, span in decoded.spans(settings).items()}
    parts = {name: (start, round(start + spans[name], 2)) for name in present}
    longest = max(lengths.values(), default=None)
    return Answer(clip.id, tuple(present), rankings, wrong, parts, longest, decoded.is_longer(settings, present))


def report(config: PredictConfig, answers: Sequence[Answer]) -> Report:
    """The answers in the format asked for, and how many clips have none."""
    records = [record_of(answer) for answer in answers]
    bad = [answer for answer in answers if answer.error is not None and answer.pieces is None]
    single = [answer for answer in answers if answer.pieces is None]
    summary = {"model": str(config.model), "clips": len(single), "failed": len(bad), "predictions": records}
    tables, text = [], ""
    if config.output_format == "table":
        tables = [table_of(config.model, answers)]
    elif config.output_format == "csv":
        text = csv_of(answers, config.top)
    else:
        text = "".join(as_json(record) + "\n" for record in records)
    problem = None
    if bad:
        problem = f"{len(bad)} of {len(single)} clips have no answer, first {bad[0].name}: {bad[0].error}"
    return Report(summary, tables=tables, problem=problem, text=text)
