"""`avpt fuse-train`: stage 2, both encoders and a fusion head, trained together on masked input."""

from __future__ import annotations

import logging
import shlex
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpt.errors import ArtifactError, AvptError, ConfigError
from avpt.files import artifacts
from avpt.files.checking import RecordError, convert
from avpt.files.locks import claim
from avpt.files.outputs import check_not_input
from avpt.files.records import InputSpec
from avpt.machine.light_imports import announce_torch
from avpt.machine.own_classes import import_class
from avpt.options import BALANCING, FuseConfig, flag
from avpt.runs import folder
from avpt.store.store import Store
from avpt.training.world import World, join_world
from avpt.types import MODALITIES, Modality, Report

if TYPE_CHECKING:
    from torch import nn

    from avpt.models.fusion import FusedModel
    from avpt.training.balancing.method import Balancing

log = logging.getLogger(__name__)


def run(config: FuseConfig) -> Report:
    """Do nothing where the run is already there; torch is loaded only for work, or to read a method's settings."""
    with join_world() as world, ExitStack() as held:
        store = Store(config.store)
        config = replace(config, balance_set=settings_recorded(config))
        inputs = {"store": store.fingerprint}
        inputs |= {modality: artifacts.model_hash(getattr(config, modality)) for modality in MODALITIES}
        if config.mask != "none" and config.confidence is not None:
            inputs["confidence"] = artifacts.model_hash(config.confidence)
        given = {f"teacher_{m}": path for m, path in teachers_of(config).items() if path != getattr(config, m)}
        inputs |= {name: artifacts.model_hash(path) for name, path in given.items()}
        check_not_input(config.out, config.audio, config.visual, *given.values())
        known = options_of_inputs(config)
        for options in known.values():
            config = replace(config, **options)
        side, count = config.pictures
        config = replace(config, image_size=side, num_frames=count)
        settings = {"config": config.record(), "inputs": inputs}
        world.first(lambda: held.enter_context(claim(config.out)))
        summary = world.first(lambda: folder.find_summary(config.out, settings, config.defaults(), config.overwrite))
        if summary is None:
            for path, options in known.items():
                words = [word for name, value in options.items() for word in (flag(name), str(value))]
                log.info("taken from %s: %s", path, shlex.join(words))
            summary = train(config, store, settings, world)
    how = [config.fusion, f"mask {config.mask}", *([config.balance] if config.balance != "none" else [])]
    how += ["modality dropout"] if config.modality_dropout else []
    return folder.report(config.out, summary, ", ".join(["joint", *how]), len(store.classes))


def options_of_inputs(config: FuseConfig) -> dict[Path, dict[str, Any]]:
    """Options that are not typed and that an input was made with, by its path: what was said once is not asked again.

    The front end of sound needs none: it is the store's, which is refused if the audio encoder was trained on another.
    """
    options: dict[Path, dict[str, Any]] = {}
    with suppress(artifacts.ForeignWeightsError, RecordError):  # who loads it says what is wrong
        header, _ = artifacts.read_header(artifacts.model_file(config.visual))
        if header.spec.get("input") is not None:  # of an encoder fresh from `init` it is None
            pipeline = convert(header.spec["input"], InputSpec)
            options[config.visual] = {"image_size": pipeline.image_size, "num_frames": pipeline.num_frames}
    if config.mask != "none" and config.confidence is not None:
        header, _ = artifacts.read_header(config.confidence)
        options[config.confidence] = {name: header.config.get(name) for name in ("audio_patch", "visual_patch")}
    return {
        path: some
        for path, values in options.items()
        if (some := {n: value for n, value in values.items() if value is not None and getattr(config, n) is None})
    }


def train(config: FuseConfig, store: Store, settings: dict[str, Any], world: World) -> dict[str, Any]:
    """Join two encoders, mask what is easy about each clip, train end to end."""
    announce_torch()
    from avpt.confidence import files, formulas
    from avpt.loading.masking import plan_masking
    from avpt.models.checkpoint import check_frozen, check_input, load_encoder
    from avpt.models.encoder import fit_pipeline
    from avpt.models.fusion import FusedModel, find_fusion, try_fusion
    from avpt.runs import training_run
    from avpt.store.splits import training_splits
    from avpt.training.balancing.method import Joint

    device = training_run.start(config, world)
    balancing = find_balancing(config, store)
    fusion = find_fusion(config.fusion, "--fusion")
    classes = len(store.classes)
    audio, visual = load_encoder(config.audio, "audio"), load_encoder(config.visual, "visual")
    check_input(audio, config.audio, store.settings)
    if config.freeze_encoders:
        check_frozen(audio.encoder, config.audio)
        check_frozen(visual.encoder, config.visual)
    side, count = config.pictures
    if visual.input is not None and visual.input.image_size != side:
        trained_at = visual.input.image_size
        log.warning("%s was trained at --image-size %d, this run is at %d", config.visual, trained_at, side)
    if strangers := [
        m for m, loaded in (("audio", audio), ("visual", visual)) if loaded.store not in (None, store.fingerprint)
    ]:
        log.warning("%s encoder(s) were trained on another store than %s", " and ".join(strangers), config.store)
    pipeline = fit_pipeline(store.input_spec(side, count), {config.audio: audio.spec, config.visual: visual.spec})
    splits = training_splits(store, MODALITIES, config.val_fraction)
    clips = splits["train"].ids

    if config.mask == "none" and config.confidence is not None:
        log.warning("--mask none ignores --confidence %s", config.confidence)
    masking = None
    ratios = formulas.no_ratios(len(clips))
    if config.mask != "none" and config.confidence is not None:
        certain, known = files.read_confidence(config.confidence, clips)
        files.check_scored_from(config.confidence, {"audio": config.audio, "visual": config.visual})
        ratios = formulas.mask_ratios(certain, **config.ratio_options)
        ratios = formulas.spread(ratios, known, len(clips))
        if not any(bool(ratios[modality].any()) for modality in MODALITIES):
            surest = max(float(certain[modality].max()) for modality in MODALITIES)
            log.warning(
                "nothing is masked, as all ratios are 0: the surest confidence is %.3f, --mask-threshold %g; set a "
                "lower one, or --mask none",
                *(surest, config.mask_threshold),
            )
        masking = plan_masking(ratios, pipeline, config.patch)

    spec = {"audio": audio.spec.record(), "visual": visual.spec.record(), "fusion": config.fusion}
    header = training_run.model_header("fused", config, store, settings, spec, pipeline, device, world)

    def begin() -> None:
        paths = {name: getattr(config, name) for name in settings["inputs"]}
        folder.begin_run(config.out, settings, config.overwrite, paths)
        files.save_ratios(config.out / "mask.safetensors", header, ratios, clips)

    if ":" in config.fusion:
        try_fusion(fusion, (audio.encoder.width, visual.encoder.width, classes), f"--fusion {config.fusion}")
    model = FusedModel(audio.encoder, visual.encoder, fusion, classes).to(device)
    if balancing is not None:
        method, values = balancing
        teachers = partial(load_teachers, config, store, model, pipeline)
        joint = Joint(model, classes, config.epochs, config.seed, world, teachers)
        try:
            made = method(joint, **values).to(device)
        except Exception as error:  # whatever a class of the user's own raises
            if isinstance(error, AvptError) or ":" not in config.balance:
                raise
            what = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise ConfigError(f"--balance {config.balance} can't be made ({what}); --debug shows where") from error
        if made.first_epoch >= config.epochs:
            log.warning(
                "--balance %s begins with epoch %d, counted from 0, behind the last: it changes nothing",
                *(config.balance, made.first_epoch),
            )
        model.balance = made
    return training_run.train(config, model, store, splits, MODALITIES, pipeline, header, begin, world, masking)


def settings_recorded(config: FuseConfig) -> list[str] | None:
    """The settings of the balancing method, as the run records them.

    Raises:
        ConfigError: there is no such method, or no such setting.
    """
    if not config.balance_set:
        return None
    from avpt.training.balancing.settings import as_recorded, read_settings

    values = read_settings(find_method(config.balance), config.balance, config.balance_set, config.given_to_balance)
    return list(as_recorded(values, config.balance_set))


def find_method(name: str) -> type[Balancing]:
    """The balancing method of a name, or the user's own class `package.module:Class`.

    Raises:
        ConfigError: there is no such class.
    """
    from avpt.training.balancing.method import Balancing

    return import_class(BALANCING.get(name, name), Balancing, "--balance", "avpt.balancing.Balancing")


def find_balancing(config: FuseConfig, store: Store) -> tuple[type[Balancing], dict[str, Any]] | None:
    """The balancing method that is asked for, and its options; None for none.

    Raises:
        ConfigError: there is no such class, it has no such option, or it does not go with the rest of the run.
    """
    from avpt.training.balancing.settings import read_settings

    if config.balance == "none":
        return None
    method = find_method(config.balance)
    if not method.taught:
        config.check_no_teacher()
    if method.one_label and store.multi_label:
        raise ConfigError(f"--balance {config.balance} is made for one label a clip, {config.store} has several")
    if method.through_encoders and config.freeze_encoders:
        raise ConfigError(
            f"--balance {config.balance} changes how the encoders learn; with --freeze-encoders they do not"
        )
    values = read_settings(method, config.balance, config.balance_set or (), config.given_to_balance)
    try:
        signature(method).bind(None, **values)
    except TypeError as error:
        raise ConfigError(f"--balance {config.balance} can't be made of the run and its options ({error})") from None
    return method, values


def teachers_of(config: FuseConfig) -> dict[Modality, Path]:
    """The stage-1 runs that a balancing method may learn from: those named for it, else those of the encoders."""
    return {"audio": config.teacher_audio or config.audio, "visual": config.teacher_visual or config.visual}


def load_teachers(
    config: FuseConfig, store: Store, model: FusedModel, pipeline: InputSpec
) -> dict[Modality, nn.Module]:
    """The stage-1 models that a method learns from, frozen; each has an `encoder` and a `head`.

    Raises:
        AvptError: one is not a stage-1 run, was trained on another store, for other classes, or on pictures that were
            normalised otherwise, or has other features than the encoder that it teaches.
    """
    from avpt.files.model_headers import read_input
    from avpt.models.checkpoint import load_network

    device = next(model.parameters()).device

    teachers: dict[Modality, nn.Module] = {}
    for modality, path in teachers_of(config).items():
        loaded = load_network(path, "encoder", "classifier")
        step = f"--balance {config.balance} learns from stage-1 runs on {config.store}"
        if loaded.head is None:
            raise ArtifactError(f"{path} is not trained yet; {step}: name one with --teacher-{modality}")
        if modality not in loaded.encoders:
            raise ArtifactError(f"{path} is no {modality} model; name one with --teacher-{modality}")
        if loaded.header.classes != store.classes:
            raise ArtifactError(f"{path} was trained for other classes than the store has; {step}")
        if loaded.header.inputs.get("store") != store.fingerprint:
            raise ArtifactError(f"{path} was trained on another store; {step}")
        if (width := loaded.encoder(modality).width) != (own := getattr(model, modality).width):
            raise ArtifactError(
                f"{path} has {width} features, the {modality} encoder {own}; name one of its architecture"
            )
        colours = read_input(path, loaded.header).colours
        if modality == "visual" and colours != pipeline.colours:
            raise ArtifactError(f"{path} learned from pictures that are normalised otherwise than here; {step}")
        teachers[modality] = loaded.network.requires_grad_(False).to(device)
    return teachers
