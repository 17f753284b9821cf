"""`avpt report`."""

from __future__ import annotations

from avpt.config import ReportConfig
from avpt.types import Report


def run(config: ReportConfig) -> Report:
    """To be written."""
    raise NotImplementedError
