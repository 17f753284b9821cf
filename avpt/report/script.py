"""Commands as one script for a shell: those that differ in the seed alone stand once, in a loop over the seeds."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from avpt.report.shell_commands import join_lines

PLAIN = re.compile(r"[\w@%+:,./=-]*", re.ASCII)  # needs no quotes
SPECIAL = re.compile(r'([\\"$`])')  # within double quotes


@dataclass(frozen=True)
class Step:
    """The commands that make one thing, each for another seed; or a single command."""

    commands: Sequence[list[str]]  # words
    seeds: Sequence[int] = ()  # one per command; none where it is not known what they have in common

    def looped(self) -> list[str] | None:
        """The words of all its commands in one, quoted, with $seed in place of the seed; None if they differ more."""
        if len(self.commands) < 2 or len(set(self.seeds)) < len(self.commands):
            return None
        commands = name_seeds(self.commands, self.seeds)
        if len(set(map(len, commands))) > 1:
            return None
        words = [merge_word(versions, self.seeds) for versions in zip(*commands, strict=True)]
        there = [word for word in words if word is not None]
        return there if len(there) == len(words) else None


def write_script(steps: Sequence[Step]) -> str:
    """Write the commands of all steps in their order; neighbours with the same seeds share a loop."""
    parts: list[str] = []
    running: list[int] = []  # the seeds of the loop that is open
    for step in steps:
        words = step.looped()
        seeds = list(step.seeds) if words else []
        if running and running != seeds:
            parts[-1] += "\ndone"
        if words is None:
            parts += [join_lines(list(map(shlex.quote, command))) for command in step.commands]
        elif running == seeds:
            parts[-1] += "\n" + join_lines(words, "  ")
        else:
            parts.append(f"for seed in {' '.join(map(str, seeds))}; do\n{join_lines(words, '  ')}")
        running = seeds
    if running:
        parts[-1] += "\ndone"
    return "\n".join(parts)


def name_seeds(commands: Sequence[list[str]], seeds: Sequence[int]) -> list[list[str]]:
    """Name the seed in commands that leave it at its default, if others of them name it."""
    place = next((words.index("--seed") for words in commands if "--seed" in words), None)
    if place is None:
        return list(commands)
    return [
        words if "--seed" in words else [*words[:place], "--seed", str(seed), *words[place:]]
        for words, seed in zip(commands, seeds, strict=True)
    ]


def merge_word(versions: Sequence[str], seeds: Sequence[int]) -> str | None:
    """Merge the versions of a word into one, quoted, with $seed where each has its seed; None if they differ more."""
    if len(set(versions)) == 1:
        return shlex.quote(versions[0])
    parts = [re.split("([0-9]+)", version) for version in versions]
    if len(set(map(len, parts))) > 1:
        return None
    merged: list[str | None] = []  # None where the seed belongs
    for column in zip(*parts, strict=True):
        if len(set(column)) > 1 and column != tuple(map(str, seeds)):
            return None
        merged.append(column[0] if len(set(column)) == 1 else None)
    follows = [*merged[1:], ""]
    plain = all(PLAIN.fullmatch(part) for part in merged if part is not None)
    text = "".join(
        ("${seed}" if re.match(r"\w", after or "") else "$seed") if part is None else SPECIAL.sub(r"\\\1", part)
        for part, after in zip(merged, follows, strict=True)
    )
    return text if plain else f'"{text}"'
