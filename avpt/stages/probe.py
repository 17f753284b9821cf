"""`avpt probe`."""

from __future__ import annotations

from avpt.config import ProbeConfig
from avpt.types import Report


def run(config: ProbeConfig) -> Report:
    """To be written."""
    raise NotImplementedError
