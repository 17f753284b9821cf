"""`avpt finetune-unimodal`: stage 1, one encoder on its own modality, its confidence in each clip on record."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from avpt.files import artifacts
from avpt.files.locks import claim
from avpt.files.outputs import check_not_input
from avpt.machine.light_imports import announce_torch
from avpt.options import FinetuneConfig
from avpt.runs import folder
from avpt.store.store import Store
from avpt.training.world import World, join_world
from avpt.types import Report


def run(config: FinetuneConfig) -> Report:
    """Do nothing where the run is already there; torch is loaded only when there is work."""
    with join_world() as world, ExitStack() as held:
        store = Store(config.store)
        inputs = {"store": store.fingerprint, "init": artifacts.model_hash(config.init)}
        check_not_input(config.out, config.init)
        settings = {"config": config.record(), "inputs": inputs}
        world.first(lambda: held.enter_context(claim(config.out)))
        summary = world.first(lambda: folder.find_summary(config.out, settings, config.defaults(), config.overwrite))
        if summary is None:
            summary = train(config, store, settings, world)
    return folder.report(config.out, summary, f"{config.modality} alone", len(store.classes))


def train(config: FinetuneConfig, store: Store, settings: dict[str, Any], world: World) -> dict[str, Any]:
    """Adapt one encoder to its own stream and record how sure it is of each training clip."""
    announce_torch()
    from avpt.models.checkpoint import check_frozen, check_input, load_encoder
    from avpt.models.encoder import Classifier, fit_pipeline
    from avpt.runs import training_run
    from avpt.store.splits import training_splits

    device = training_run.start(config, world)
    loaded = load_encoder(config.init, config.modality)
    check_input(loaded, config.init, store.settings)
    if config.freeze_encoders:
        check_frozen(loaded.encoder, config.init)
    splits = training_splits(store, [config.modality], config.val_fraction)
    pipeline = fit_pipeline(store.input_spec(*config.pictures), {config.init: loaded.spec})
    spec = {"encoder": loaded.spec.record()}
    header = training_run.model_header("classifier", config, store, settings, spec, pipeline, device, world)
    paths = {"store": config.store, "init": config.init}
    begin = partial(folder.begin_run, config.out, settings, config.overwrite, paths)
    model = Classifier(loaded.encoder, len(store.classes)).to(device)
    return training_run.train(config, model, store, splits, [config.modality], pipeline, header, begin, world)
