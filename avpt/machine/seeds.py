"""Seeds of everything random, drawn from the run's own; standard library only."""

from __future__ import annotations

import hashlib


def seed_for(seed: int, *what: object) -> int:
    """The seed of what these words and numbers name, unlike that of anything else; below 2**63."""
    digest = hashlib.sha256(":".join(map(str, (seed, *what))).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
