"""`avpt evaluate`: a trained model on the splits of a store, also with a modality absent or noised."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpt.errors import ConfigError, StoreError, listed
from avpt.files import artifacts
from avpt.files.artifacts import Header
from avpt.files.locks import claim
from avpt.files.model_headers import WITH_CLASSES, architectures, read_model
from avpt.files.outputs import write_json
from avpt.files.records import EvaluationRecord
from avpt.files.reuse import reuse_record
from avpt.machine.progress import track_batches
from avpt.machine.workers import loading_workers
from avpt.options import EvaluateConfig
from avpt.store.store import Store
from avpt.text import decimals
from avpt.training.metrics import informative
from avpt.types import HELD_OUT, MODALITIES, SPLITS, Modality, Report, Split, Table

if TYPE_CHECKING:
    from torch import Tensor

    from avpt.runs.trained_model import TrainedModel
    from avpt.store.store import SplitIndex

log = logging.getLogger(__name__)

PROVENANCE = ("kind", "config", "inputs")  # what the file holds besides the record


def run(config: EvaluateConfig) -> Report:
    """Do nothing where the record is already there; torch is loaded only when there is work."""
    store = Store(config.store)
    check_request(config, store)
    inputs = {"model": artifacts.model_hash(config.model), "store": store.fingerprint}
    if config.ensemble is not None:
        inputs["ensemble"] = artifacts.model_hash(config.ensemble)
    header = Header(kind="predictions", config=config.record(), inputs=inputs)
    provenance = {"kind": "evaluation", "config": header.config, "inputs": inputs}
    records: list[dict[str, Any] | None] = []
    with ExitStack() as held:
        if config.out is not None:
            held.enter_context(claim(config.out))
            records.append(reuse_record(config.out, provenance, config.defaults(), config.overwrite, EvaluationRecord))
        if config.predictions is not None:
            held.enter_context(claim(config.predictions))
            reused = artifacts.reuse(config.predictions, header, config.defaults(), config.overwrite)
            records.append(None if reused is None else reused.metrics)
        record = records[0] if records else None
        if record is None or None in records:
            record = evaluate(config, store, header)
            if config.out is not None:
                write_json(config.out, provenance | record)
    classes = artifacts.read_header(artifacts.model_file(config.model))[0].classes
    return report(config, {name: value for name, value in record.items() if name not in PROVENANCE}, len(classes))


def check_request(config: EvaluateConfig, store: Store) -> None:
    """Refuse what the headers of the models show to be impossible.

    Raises:
        ArtifactError: a model can't classify.
        ConfigError: options do not go with it.
        StoreError: its clips had one label each and the store's have several, or the other way round.
    """
    models = [read_model(path, *WITH_CLASSES) for path in named_paths(config)]
    archs = [architectures(model) for model in models]
    if not all(archs):  # a damaged spec, as loading will say
        return
    if len(models) > 1:
        check_joined(models, archs, named(config))
    fed = modalities_fed(config, [modality for modality in MODALITIES if any(modality in one for one in archs)])
    noisy_modality(config, fed)
    if isinstance(multi_label := models[0].spec.get("multi_label"), bool):
        check_labels(config, store, multi_label)


def check_joined(models: Sequence[Header], archs: Sequence[Mapping[Modality, str]], names: Sequence[str]) -> None:
    """Check that two models are a classifier of sound and one of pictures that know the same classes.

    Raises:
        ConfigError: they are not.
    """
    for model, name in zip(models, names, strict=True):
        if model.kind != "classifier":
            raise ConfigError(
                f"--ensemble joins a classifier of sound and one of pictures, and {name} is a fused model"
            )
    ((modality,), (other,)) = archs
    if modality == other:
        raise ConfigError(
            f"--ensemble joins a classifier of sound and one of pictures; {names[0]} and {names[1]} are both of "
            f"{modality} input"
        )
    known = [(model.classes, model.spec.get("multi_label")) for model in models]
    if known[0] != known[1]:
        few = [sorted({*one.classes} - {*other.classes}) for one, other in (models, models[::-1])]
        apart = " and ".join(f"{listed(some)} in {name}" for some, name in zip(few, names, strict=True) if some)
        raise ConfigError(
            f"{names[0]} and {names[1]} know different classes ({apart or 'one label a clip or several'})"
        )


def evaluate(config: EvaluateConfig, store: Store, header: Header) -> dict[str, Any]:
    """Run the model over each split through its own input pipeline, and measure."""
    log.info("loading %s", " and ".join(named(config)))
    import torch

    from avpt.loading.evaluation_clips import EvaluationDataset, Noise
    from avpt.loading.loader import Loader, explain_worker_deaths
    from avpt.models.fusion import FusedModel, OneModality
    from avpt.runs import training_run
    from avpt.runs.trained_model import join_classifiers, load_trained
    from avpt.training import passes, runtime
    from avpt.training.metrics import per_class
    from avpt.training.world import World

    trained = load_trained(config.model)
    if config.ensemble is not None:
        trained = join_classifiers(trained, load_trained(config.ensemble))
    fed = modalities_fed(config, trained.modalities)
    noisy = noisy_modality(config, fed)
    noise = None if noisy is None or config.snr is None else Noise(noisy, config.snr)
    splits, left_out = clips_of(config, store, trained, fed)

    device = runtime.start(config.seed, config.device)
    model: torch.nn.Module = trained.model.to(device)
    if trained.option("channels_last"):  # as the run itself evaluated it
        model = model.to(memory_format=torch.channels_last)
    if isinstance(trained.model, FusedModel) and len(fed) == 1:
        model = OneModality(trained.model, fed[0])
    workers = loading_workers(config.workers, clips=sum(map(len, splits.values())))
    batch_size = config.batch_size or trained.option("batch_size")
    record: dict[str, Any] = {"val": None, "test": None, "clips": {}, "left_out": left_out}
    tensors: dict[str, Tensor] = {}
    with explain_worker_deaths():
        for split, index in splits.items():
            codec = store.settings["frame_codec"]
            dataset = EvaluationDataset(index, fed, trained.input, codec, seed=config.seed)
            dataset.noise = noise
            batches = Loader(dataset, batch_size, device=device, workers=workers).epoch(0)
            shown = track_batches(batches, len(index), f"evaluate {split}")
            outputs = passes.evaluate(model, shown, len(index), World())
            record[split] = training_run.measure(outputs)
            record["clips"][split] = len(index)
            if config.per_class:
                record["classes"] = trained.classes
                record.setdefault("per_class", {})[split] = per_class(outputs["logits"], outputs["labels"])
            tensors |= {f"{split}_{name}": value for name, value in outputs.items()}
            tensors |= artifacts.pack_ids(index.ids, prefix=f"{split}_")
    if config.predictions is not None:
        environment = runtime.environment(device)
        header = replace(header, classes=trained.classes, metrics=record, environment=environment)
        artifacts.save(config.predictions, header, tensors)
    return record


def named_paths(config: EvaluateConfig) -> list[Path]:
    """The paths of the model, or of the two that answer together."""
    return [path for path in (config.model, config.ensemble) if path is not None]


def named(config: EvaluateConfig) -> list[str]:
    """These paths in words."""
    return list(map(str, named_paths(config)))


def modalities_fed(config: EvaluateConfig, has: Sequence[Modality]) -> list[Modality]:
    """The modalities that the model is fed.

    Raises:
        ConfigError: nothing would be left of a classifier of one modality.
    """
    if config.drop is not None and len(has) == 1:
        raise ConfigError(f"--drop is for fused models; {config.model} is a classifier of {has[0]} input alone")
    return [modality for modality in MODALITIES if modality in has and modality != config.drop]


def noisy_modality(config: EvaluateConfig, fed: list[Modality]) -> Modality | None:
    """What noise is added to, if any; a model that is fed one modality gets it on that.

    Raises:
        ConfigError: --noise is missing for a model of two modalities, or names one that the model is not fed.
    """
    if config.snr is None:
        return None
    if config.noise is None and len(fed) > 1:
        raise ConfigError("--snr needs --noise audio or --noise visual for a fused model")
    modality = config.noise or fed[0]
    if modality not in fed:
        raise ConfigError(f"--noise {modality} does not go with {config.model}, which takes {fed[0]} input alone")
    return modality


def check_labels(config: EvaluateConfig, store: Store, multi_label: bool) -> None:
    """Check that a store's clips have as many labels each as the model's had.

    Raises:
        StoreError: they have one, and those several, or the other way round.
    """
    if store.multi_label != multi_label:
        kinds = ("one label", "several labels")
        raise StoreError(
            f"the clips of {store.path} have {kinds[store.multi_label]} each and {config.model} was trained on clips "
            f"with {kinds[multi_label]}; they can't be compared"
        )


def clips_of(
    config: EvaluateConfig, store: Store, trained: TrainedModel, fed: list[Modality]
) -> tuple[dict[Split, SplitIndex], dict[Split, int]]:
    """The clips to evaluate on, by split, with the model's class numbers; and how many are left out.

    Raises:
        StoreError: the store lacks the split, a modality, or every class, or has spectrograms of other settings.
    """
    from avpt.loading.evaluation_clips import all_splits, match_classes
    from avpt.runs.trained_model import check_clips

    check_labels(config, store, trained.multi_label)
    own = trained.header.inputs.get("store") == store.fingerprint
    available = all_splits(store, trained.option("val_fraction") if own else None)
    asked: tuple[str, ...] = HELD_OUT if config.split is None else (config.split,)
    wanted = {split: available[split] for split in SPLITS if split in available and (split in asked or "all" in asked)}
    if not wanted:
        which = " or ".join(asked)
        raise StoreError(f"{store.path} has no {which} clips; it has {listed(list(available)) or 'none'}: see --split")
    check_clips(store, wanted, fed, trained.input)

    splits, left_out = {}, {}
    for split, index in wanted.items():
        matched = match_classes(index, store.classes, trained.classes)
        if not len(matched.index):
            raise StoreError(
                f"{store.path}: no clip of {split} has a class that {config.model} knows "
                f"({listed(matched.unknown)} there, {listed(trained.classes)} in the model)"
            )
        splits[split], left_out[split] = matched.index, matched.left_out
        if matched.left_out:
            log.warning(
                "%d of %d clips of %s are left out: the model does not know their classes (%s)",
                *(matched.left_out, len(index), split, listed(matched.unknown)),
            )
        if matched.labels_left_out:
            log.warning(
                "%d labels of clips of %s are left out: the model does not know them (%s)",
                *(matched.labels_left_out, split, listed(matched.unknown_labels)),
            )
    if store.multi_label and (absent := [name for name in trained.classes if name not in store.classes]):
        log.warning("%s has no class %s: its clips count as clips without", store.path, listed(absent))
    return splits, left_out


def report(config: EvaluateConfig, record: dict[str, Any], num_classes: int) -> Report:
    """One row per split and, where asked for, one per class."""
    splits = [split for split in SPLITS if record.get(split)]
    metrics = informative(sorted(record[splits[0]]), num_classes)
    rows = [
        (split, str(record["clips"][split]), *(decimals(record[split][name]) for name in metrics)) for split in splits
    ]
    how = "" if config.drop is None else f", without {config.drop}"
    how += "" if config.snr is None else f", {config.noise or 'its'} input at {config.snr:g} dB"
    tables = [
        Table(
            f"{' with '.join(named(config))} on {config.store}{how}",
            ("", "clips", *(name.replace("_", " ") for name in metrics)),
            rows,
        )
    ]
    for split, measured in record.get("per_class", {}).items():
        (name,) = measured.keys() - {"count", "confusion"}
        cells = [
            (label, str(count), decimals(value))
            for label, count, value in zip(record["classes"], measured["count"], measured[name], strict=True)
        ]
        tables.append(Table(f"classes, {split}", ("class", "clips", name), cells))
    summary = {"model": str(config.model), "store": str(config.store), **record}
    summary |= {} if config.ensemble is None else {"ensemble": str(config.ensemble)}
    return Report(summary, tuple(path for path in (config.out, config.predictions) if path is not None), tables)
