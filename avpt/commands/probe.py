"""`avpt probe`: a linear probe of an encoder, and of the stage-1 encoder that a fused run started from."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from avpt.errors import ArtifactError, ConfigError
from avpt.files import artifacts
from avpt.files.artifacts import Header
from avpt.files.locks import claim
from avpt.machine.progress import track_batches
from avpt.machine.workers import loading_workers
from avpt.options import FinetuneConfig, ProbeConfig
from avpt.runs.lineage import Lineage
from avpt.store.store import Store
from avpt.training.metrics import key_name, key_name_of
from avpt.types import HELD_OUT, Modality, Report, Split, Table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from avpt.diagnosis.linear_probes import Probe
    from avpt.loading.dataset import InputSpec
    from avpt.models.encoder import Encoder
    from avpt.store.store import SplitIndex

log = logging.getLogger(__name__)

PROBED_KINDS: tuple[artifacts.Kind, ...] = ("encoder", "classifier", "fused")
SURE = 0.05  # a p below it counts as a difference
WIDTH = 80  # characters of a line of text


def run(config: ProbeConfig) -> Report:
    """Do nothing where the probe is already there; torch is loaded only when there is work."""
    store = Store(config.store)
    inputs = {"model": artifacts.model_hash(config.model), "store": store.fingerprint}
    model, _ = artifacts.read_header(artifacts.model_file(config.model))
    modality = modality_of(config, model)
    before = find_stage1(config, model, modality)
    if before is not None:
        inputs["stage1"] = artifacts.model_hash(before)
    header = Header(kind="probe", config=config.record() | {"modality": modality}, inputs=inputs)
    if config.out is None:
        return report(config, probe(config, store, model, modality, before, header))
    with claim(config.out):
        reused = artifacts.reuse(config.out, header, config.defaults(), config.overwrite)
        return report(config, reused or probe(config, store, model, modality, before, header))


def modality_of(config: ProbeConfig, model: Header) -> Modality:
    """The modality of the encoder to probe.

    Raises:
        ArtifactError: the file holds no encoder.
        ConfigError: --modality is missing, or names one that the model lacks, or --stage1 is given for no fused model.
    """
    if model.kind not in PROBED_KINDS:
        raise ArtifactError(f"{config.model} is of kind {model.kind}; {' or '.join(PROBED_KINDS)} is needed here")
    if model.kind == "fused":
        if config.modality is None:
            raise ConfigError(f"{config.model} holds two encoders; add --modality audio or --modality visual")
        return config.modality
    if config.stage1 is not None:
        raise ConfigError(f"--stage1 is for fused models; {config.model} is of kind {model.kind}")
    try:
        has: Modality = model.spec["encoder"]["modality"]
    except (KeyError, TypeError):
        raise ArtifactError(f"{config.model} does not fit its own spec; make it again") from None
    if config.modality not in (None, has):
        raise ConfigError(f"--modality {config.modality} does not go with {config.model}, which takes {has} input")
    return has


def find_stage1(config: ProbeConfig, model: Header, modality: Modality) -> Path | None:
    """The encoder of a fused model trained alone: what it started from, or where that is fresh from `init` its stage 1.

    The user is warned where there is none.

    Raises:
        ArtifactError: --stage1 is something else.
    """
    if model.kind != "fused":
        return None
    recorded = model.inputs.get(modality, "")
    if config.stage1 is not None:
        checksum = artifacts.model_hash(config.stage1)
        given, _ = artifacts.read_header(artifacts.model_file(config.stage1))
        if recorded not in (checksum, given.inputs.get("init")):
            raise ArtifactError(
                f"{config.stage1} is not what the {modality} encoder of {config.model} started from, nor trained alone "
                f"from it (checksum {checksum[:12]}..., it records {recorded[:12]}...); name that one, or leave "
                "--stage1 out"
            )
        return config.stage1
    log.info("looking for what %s started from", config.model)
    lineage = Lineage([config.model], config.search)
    lineage.follow(config.model)
    node = lineage.find(recorded)
    if node is None:
        log.warning(
            "what the %s encoder of %s started from (checksum %s...) was not found around it, so there is nothing to "
            "compare with; name it with --stage1, or folders to look in with --search",
            *(modality, config.model, recorded[:12]),
        )
        return None
    if node.kind == "classifier":
        return node.path
    alone = [
        run
        for run in lineage.made_from(node, "classifier")
        if run.is_run and run.option("seed") == model.config.get("seed") and artifacts.model_file(run.path).is_file()
    ]
    if len(alone) == 1:
        log.info("compared with %s, which was trained alone from %s", alone[0].path, node.path)
        return alone[0].path
    which = f"of {len(alone)} runs that were" if alone else "no run was found that was"
    log.warning(
        "%s is fresh from `avpt init`, and %s trained alone from it%s; name one with --stage1 to compare with that",
        *(node.path, which, " none is preferred" if alone else ""),
    )
    return node.path


def probe(
    config: ProbeConfig, store: Store, model: Header, modality: Modality, before: Path | None, header: Header
) -> Header:
    """Compute the features of each split once, fit a probe on them, and the same for the stage-1 encoder."""
    log.info("loading %s", config.model)
    from avpt.diagnosis.linear_probes import mcnemar
    from avpt.runs.trained_model import check_clips, training_option
    from avpt.store.splits import training_splits
    from avpt.training import runtime

    probed = {"": load(config, store, config.model, modality)}
    if before is not None:
        try:
            probed["stage1_"] = load(config, store, before, modality, like=probed[""].pipeline)
        except ArtifactError as error:
            if config.stage1 is not None:
                raise
            log.warning("there is no stage-1 encoder to compare with: %s", error)
    splits = training_splits(store, [modality], training_option(model, "val_fraction"), "choose the probe's strength")
    for one in probed.values():
        check_clips(store, splits, [modality], one.pipeline)
    batch_size = config.batch_size or training_option(model, "batch_size")
    device = runtime.start(0, config.device)  # nothing is drawn

    labels, classes = number_classes(splits, store.classes)
    tensors: dict[str, Tensor] = {f"{split}_labels": values for split, values in labels.items()}
    for split, index in splits.items():
        tensors |= artifacts.pack_ids(index.ids, prefix=f"{split}_")
    metric = key_name(store.multi_label)
    record: dict[str, Any] = {"modality": modality, "clips": {split: len(index) for split, index in splits.items()}}
    right = {}
    for prefix, one in probed.items():
        features = encode_splits(config, store, splits, one, batch_size, device)
        fitted, scores, right[prefix] = probe_features(features, labels)
        measured = {metric: scores, "strength": fitted.strength, "converged": fitted.converged}
        record |= {"stage1": measured} if prefix else measured
        tensors |= {f"{prefix}{split}_features": values for split, values in features.items()}
        tensors |= {f"{prefix}{name}": tensor_of(getattr(fitted, name)) for name in ("weight", "bias")}
        if not fitted.converged:
            log.warning("the fit of the probe of %s stopped before it converged", one.path)
    if "stage1" in record:
        pairs = {split: (record[metric][split], record["stage1"][metric][split]) for split in HELD_OUT}
        record["difference"] = {split: None if None in pair else pair[0] - pair[1] for split, pair in pairs.items()}
        if "test" in splits and not store.multi_label:
            record["mcnemar"] = mcnemar(right[""]["test"].numpy(), right["stage1_"]["test"].numpy())
    made = replace(header, classes=classes, metrics=record, environment=runtime.environment(device))
    if config.out is not None:
        artifacts.save(config.out, made, tensors)
    return made


@dataclass(frozen=True)
class ProbedEncoder:
    """An encoder, and the pipeline that its inputs go through."""

    path: Path
    encoder: Encoder
    modality: Modality
    pipeline: InputSpec


def load(
    config: ProbeConfig, store: Store, path: Path, modality: Modality, like: InputSpec | None = None
) -> ProbedEncoder:
    """Read an encoder; where it is fresh from `init` its pipeline is `like`, or the defaults.

    Raises:
        ArtifactError: the file holds none, or its BatchNorm has no statistics yet.
    """
    from avpt.files.model_headers import read_input
    from avpt.models.checkpoint import check_frozen, load_network
    from avpt.models.encoder import fit_pipeline

    loaded = load_network(path, *PROBED_KINDS)
    encoder, trained = loaded.encoder(modality), loaded.header.spec.get("input")
    check_frozen(encoder, path)
    if trained is not None:
        pipeline = read_input(path, loaded.header)
    else:
        usual = FinetuneConfig.defaults()
        pipeline = like or store.input_spec(usual["image_size"], usual["num_frames"])
    image_size, num_frames = config.image_size or pipeline.image_size, config.num_frames or pipeline.num_frames
    pipeline = replace(pipeline, image_size=image_size, num_frames=num_frames)
    return ProbedEncoder(path, encoder, modality, fit_pipeline(pipeline, {path: loaded.encoders[modality]}))


def number_classes(splits: dict[Split, SplitIndex], classes: list[str]) -> tuple[dict[Split, Tensor], list[str]]:
    """Labels renumbered to the classes that train has, which are all that val and test have; and the classes' names."""
    import numpy as np

    train = splits["train"].labels
    if train.ndim == 1:
        present = np.unique(train)
        labels = {split: tensor_of(np.searchsorted(present, index.labels)) for split, index in splits.items()}
    else:
        present = np.flatnonzero(train.any(axis=0))
        labels = {split: tensor_of(index.labels[:, present]).float() for split, index in splits.items()}
    return labels, [classes[number] for number in present]


def tensor_of(values: Any) -> Tensor:
    """An array as a tensor."""
    import torch

    return torch.from_numpy(values)


def encode_splits(
    config: ProbeConfig,
    store: Store,
    splits: dict[Split, SplitIndex],
    probed: ProbedEncoder,
    batch_size: int,
    device: torch.device,
) -> dict[Split, Tensor]:
    """Features (clips, width) float32 of each split, as evaluation sees its clips."""
    from avpt.loading.evaluation_clips import EvaluationDataset
    from avpt.loading.loader import Loader, explain_worker_deaths
    from avpt.models.encoder import Features
    from avpt.training.passes import evaluate
    from avpt.training.world import World

    workers = loading_workers(config.workers, clips=sum(map(len, splits.values())))
    model, features = Features(probed.encoder).to(device), {}
    with explain_worker_deaths():
        for split, index in splits.items():
            dataset = EvaluationDataset(index, [probed.modality], probed.pipeline, store.settings["frame_codec"])
            batches = Loader(dataset, batch_size, device=device, workers=workers).epoch(0)
            shown = track_batches(batches, len(index), f"features of {split} by {probed.path.name}")
            features[split] = evaluate(model, shown, len(index), World())["features"]
    return features


def probe_features(
    features: dict[Split, Tensor], labels: dict[Split, Tensor]
) -> tuple[Probe, dict[str, float | None], dict[Split, Tensor]]:
    """Fit a probe; return it, the deciding metric on val and test, and which of their clips it gets right, (clips,)."""
    from avpt.diagnosis.linear_probes import fit_probe
    from avpt.training import metrics

    def score(logits: Any, labels: Any) -> float:
        return metrics.key_metric(metrics.measure(tensor_of(logits), tensor_of(labels)))

    arrays = {split: (features[split].numpy(), labels[split].numpy()) for split in features}
    fitted = fit_probe(arrays["train"], arrays["val"], score)
    scores: dict[str, float | None] = dict.fromkeys(HELD_OUT)
    right = {}
    for split in HELD_OUT:
        if split in features:
            logits = fitted.logits(arrays[split][0])
            scores[split] = score(logits, arrays[split][1])
            right[split] = metrics.is_correct(tensor_of(logits), labels[split])
    return fitted, scores, right


def report(config: ProbeConfig, header: Header) -> Report:
    """One row per split; beside a stage-1 encoder, the scores of both and their difference."""
    record = header.metrics
    metric = key_name_of(record)
    splits = [split for split in HELD_OUT if record[metric][split] is not None]
    rows = []
    for split in splits:
        cells = [f"{record[metric][split]:.4f}"]
        if "stage1" in record:
            cells += [f"{record['stage1'][metric][split]:.4f}", f"{record['difference'][split]:+.4f}"]
        rows.append((split, str(record["clips"][split]), *cells))
    names = ("joint", "stage 1", "difference") if "stage1" in record else (metric,)
    title = f"linear probe of the {record['modality']} encoder of {config.model} on {config.store}, {metric}"
    summary = {"model": str(config.model), "store": str(config.store), **record}
    outputs = (config.out,) if config.out is not None else ()
    words = " ".join(in_words(record).split())  # the terminal folds it to its own width
    return Report(summary, outputs, [Table(title, ("", "clips", *names), rows)], words=words)


def in_words(record: dict[str, Any]) -> str:
    """What the difference on test says of joint training, and how surely."""
    if "mcnemar" not in record:
        return ""
    clips, test = record["clips"]["test"], record["mcnemar"]
    joint, before = test["joint_only"], test["stage1_only"]
    text = (
        f"{joint} of {clips} test clips are right with the joint encoder alone, {before} with that of stage 1 alone "
        f"(exact McNemar test, p = {test['p']:.2g}): "
    )
    if test["p"] >= SURE:
        text += "no difference that these clips can show."
    else:
        lost = "lost" if before > joint else "gained"
        text += f"in joint training the encoder has {lost} what a linear classifier can use. Another seed may differ."
    return fill(text, WIDTH) + "\n"
