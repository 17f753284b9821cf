"""Seeds of everything random, derived from the run's own; standard library only."""

from __future__ import annotations

import hashlib


def seed_for(seed: int, *what: object) -> int:
    """The seed for the purpose that these words and numbers name, different for every purpose; below 2**63."""
    digest = hashlib.sha256(":".join(map(str, (seed, *what))).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
