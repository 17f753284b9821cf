"""What can be wrong with a store, and with a shard of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from avpt.store.shard_layout import Array

MOST = 1000  # problems that are kept; the rest are only counted

Record = dict[str, Any]
# make the shard again, or store.json; remove the file; start over; be allowed to read it
Remedy = Literal["shard", "store", "stray", "all", "access"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    shard: str  # or the name of another file of the store
    clip: str  # its id; empty if the problem is not about one clip
    problem: str
    remedy: Remedy = "shard"


@dataclass
class ShardCheck:
    """The result of checking one shard."""

    name: str
    problems: list[Problem] = field(default_factory=list)
    num_problems: int = 0
    clips: int = 0
    frames: int = 0
    bytes: int = 0
    hashes: Array = field(default_factory=lambda: np.zeros(0, np.uint64))  # (N,) of the ids
    declared: Record = field(default_factory=dict)  # the JSON beside the shard; empty if there is no valid one
    computed: Record = field(default_factory=dict)  # the same, with values computed from the shard where there are any

    def tell(self, problem: str, clip: str = "", *, remedy: Remedy = "shard") -> None:
        """Note a problem."""
        self.num_problems += 1
        if len(self.problems) < MOST:
            self.problems.append(Problem(self.name, clip, problem, remedy))
