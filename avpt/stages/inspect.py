"""`avpt inspect`."""

from __future__ import annotations

from avpt.config import InspectConfig
from avpt.types import Report


def run(config: InspectConfig) -> Report:
    """To be written."""
    raise NotImplementedError
