"""Options, each declared once: the command line, the library call and the provenance record read them here."""

from avpt.options.base import (
    COMMON,
    PANELS,
    Config,
    OutputConfig,
    Transient,
    allows,
    bounds,
    choices,
    flag,
    parameter,
    taken_once,
    type_hints,
)
from avpt.options.diagnose import CompareConfig, InspectConfig, ProbeConfig, ReportConfig
from avpt.options.fuse import BALANCING, COSTS, FuseConfig
from avpt.options.init import InitConfig
from avpt.options.mask import MaskConfig
from avpt.options.older_records import complete, recorded_option, restore_config
from avpt.options.other_names import unknown_option
from avpt.options.score import ScoreConfig
from avpt.options.stores import ManifestConfig, PreprocessConfig, VerifyConfig
from avpt.options.train import FinetuneConfig, TrainConfig
from avpt.options.use import (
    STATES,
    EncodersConfig,
    EvaluateConfig,
    ExportConfig,
    GuideConfig,
    InfoConfig,
    PredictConfig,
)

__all__ = [
    "BALANCING",
    "COMMON",
    "COSTS",
    "PANELS",
    "STATES",
    "CompareConfig",
    "Config",
    "EncodersConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FinetuneConfig",
    "FuseConfig",
    "GuideConfig",
    "InfoConfig",
    "InitConfig",
    "InspectConfig",
    "ManifestConfig",
    "MaskConfig",
    "OutputConfig",
    "PredictConfig",
    "PreprocessConfig",
    "ProbeConfig",
    "ReportConfig",
    "ScoreConfig",
    "TrainConfig",
    "Transient",
    "VerifyConfig",
    "allows",
    "bounds",
    "choices",
    "complete",
    "flag",
    "parameter",
    "recorded_option",
    "restore_config",
    "taken_once",
    "type_hints",
    "unknown_option",
]
