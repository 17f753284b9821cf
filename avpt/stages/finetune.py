"""`avpt finetune-unimodal`: stage 1, one encoder on its own modality, its confidence in each clip on record."""

from __future__ import annotations

from dataclasses import asdict

from avpt import runs
from avpt.config import FinetuneConfig
from avpt.data.splits import training_splits
from avpt.data.store import Store
from avpt.models.checkpoint import check_input, load_encoder
from avpt.models.encoder import Classifier
from avpt.outputs import claim
from avpt.training import run_folder, runtime
from avpt.types import Report


def run(config: FinetuneConfig) -> Report:
    """Adapt one encoder to its own stream and record how sure it is of each training clip."""
    device = runtime.start(config.seed, config.device)
    store = Store(config.store)
    loaded = load_encoder(config.init, config.modality)
    check_input(loaded, config.init, store.settings)
    splits = training_splits(store, [config.modality], config.val_fraction)
    header = runs.model_header(
        "classifier", config, store, {"init": loaded.sha256}, {"encoder": asdict(loaded.spec)}, device
    )
    with claim(config.out):
        settings = {"config": header.config, "inputs": header.inputs}
        summary = run_folder.open_run(config.out, settings, config.overwrite)
        if summary is None:
            model = Classifier(loaded.encoder, len(store.classes)).to(device)
            summary = runs.train(config, model, store, splits, [config.modality], header)
    return runs.report(config, summary, f"{config.modality} alone")
