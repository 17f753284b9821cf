"""`avpt compare`."""

from __future__ import annotations

from avpt.config import CompareConfig
from avpt.types import Report


def run(config: CompareConfig) -> Report:
    """To be written."""
    raise NotImplementedError
