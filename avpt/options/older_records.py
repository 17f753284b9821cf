"""Options as records have them: one that a record lacks is newer than the record, and counts as its default."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from avpt.errors import ConfigError
from avpt.options.base import Config
from avpt.options.diagnose import ProbeConfig
from avpt.options.fuse import FuseConfig
from avpt.options.init import InitConfig
from avpt.options.score import ScoreConfig
from avpt.options.stores import PreprocessConfig
from avpt.options.train import FinetuneConfig
from avpt.options.use import EvaluateConfig

# kind of what is made -> the options that it is made with
CONFIGS: dict[str, type[Config]] = {
    "store": PreprocessConfig,
    "encoder": InitConfig,
    "classifier": FinetuneConfig,
    "confidence": ScoreConfig,
    "fused": FuseConfig,
    "probe": ProbeConfig,
    "evaluation": EvaluateConfig,
}
# options that a config needs but that no record has, as they are paths
PATHS = ("manifest", "store", "out", "init", "audio", "visual", "confidence", "model")


def recorded_option(kind: str, config: Mapping[str, Any], name: str) -> Any:
    """An option of something that was made, or its default where the record lacks it."""
    defaults = CONFIGS[kind].defaults() if kind in CONFIGS else {}
    return config.get(name, defaults.get(name))


def restore_config(kind: str, config: Mapping[str, Any]) -> Config:
    """The options that something was made with, as a command takes them; paths are placeholders.

    Raises:
        ConfigError: this avpt does not have such options; a newer one may.
    """
    if kind not in CONFIGS:
        raise ConfigError(f"there are no options that a {kind} is made with")
    names = {field.name for field in fields(CONFIGS[kind])}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    known: dict[str, Any] = {name: Path() for name in PATHS if name in names}
    known |= {name: value for name, value in values.items() if name in names}
    try:
        return CONFIGS[kind](**known)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"its options are not those of this avpt ({error})") from None


def complete(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A record's options, and the defaults of newer ones that matter beside them."""
    try:
        whole = restore_config(kind, config).record()
    except ConfigError:
        return dict(config)
    return {**config, **json.loads(json.dumps(whole))}  # as a record has them: a list for a tuple
