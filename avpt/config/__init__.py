"""Options, each declared once: the command line, the library call and the provenance record read them here."""

from avpt.config.base import Config, OutputConfig, Transient, allows, bounds, flag, parameter, type_hints
from avpt.config.data import ManifestConfig, PreprocessConfig, VerifyConfig
from avpt.config.diagnosis import CompareConfig, InspectConfig, ProbeConfig, ReportConfig
from avpt.config.initialisation import InitConfig
from avpt.config.training import FinetuneConfig, FuseConfig, MaskConfig, ScoreConfig, TrainConfig
from avpt.config.use import EvaluateConfig, ExportConfig, InfoConfig, PredictConfig

__all__ = [
    "CompareConfig",
    "Config",
    "EvaluateConfig",
    "ExportConfig",
    "FinetuneConfig",
    "FuseConfig",
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
    "flag",
    "parameter",
    "type_hints",
]
