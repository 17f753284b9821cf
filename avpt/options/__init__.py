"""Options, each declared once: the command line, the library call and the provenance record read them here."""

from avpt.options.base import Config, OutputConfig, Transient, allows, bounds, flag, parameter, type_hints
from avpt.options.diagnose import CompareConfig, InspectConfig, ProbeConfig, ReportConfig
from avpt.options.init import InitConfig
from avpt.options.older_records import complete, recorded_option, restore_config
from avpt.options.stores import ManifestConfig, PreprocessConfig, VerifyConfig
from avpt.options.train import FinetuneConfig, FuseConfig, MaskConfig, ScoreConfig, TrainConfig
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
    "complete",
    "flag",
    "parameter",
    "recorded_option",
    "restore_config",
    "type_hints",
]
