"""`avpt verify`: every checksum, every offset and every value of a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from avpt.engines.local import Crashed, Hung, run_isolated
from avpt.machine.progress import track
from avpt.machine.workers import pool_workers
from avpt.options import VerifyConfig
from avpt.store.verification.findings import MOST, Problem, Remedy, ShardCheck
from avpt.store.verification.shard import ShardTask, check_shard
from avpt.store.verification.store_files import (
    Contents,
    advice,
    check_store_files,
    find_duplicates,
    read_contents,
)
from avpt.text import format_count
from avpt.types import Report, Table

ROWS, ROWS_PER_SHARD = 20, 3  # of the table of problems
TIMEOUT, SLOWEST = 60.0, 1e6  # seconds that a shard may take, and bytes for which it may take one more


@dataclass
class Findings:
    """The first problems in the order of the shards, and the number of all of them."""

    order: dict[str, int]  # of the shards, by name
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # by shard or file
    needs: set[tuple[str, Remedy]] = field(default_factory=set)

    def add(self, problems: Iterable[Problem]) -> None:
        """Count problems and keep the first in the order of the shards, whichever shard was checked first."""
        for problem in problems:
            self.counts[problem.shard] += 1
            self.needs.add((problem.shard, problem.remedy))
            self.problems.append(problem)
            if len(self.problems) >= 2 * MOST:
                self._sort()
        self._sort()

    def _sort(self) -> None:
        self.problems.sort(key=lambda problem: self.order.get(problem.shard, len(self.order)))
        del self.problems[MOST:]


def run(config: VerifyConfig) -> Report:
    """Check every shard in a worker, then what the store's own files say of them; nothing is written or locked."""
    contents = read_contents(config.store)
    findings = Findings({name: number for number, name in enumerate(contents.shards)})
    findings.add(contents.problems)
    checks = check_shards(config, contents, findings)
    findings.add(find_duplicates(config.store, [checks[name] for name in contents.shards]))
    findings.add(check_store_files(config.store, contents, checks))
    return report(config, list(checks.values()), findings)


def check_shards(config: VerifyConfig, contents: Contents, findings: Findings) -> dict[str, ShardCheck]:
    """Every shard's check by its name; a shard that kills its worker or hangs counts as a problem like any other."""
    if contents.config is None or not contents.shards:
        return {}
    num_classes = len(contents.record["classes"]) if contents.record else None
    paths = [config.store / name for name in contents.shards]
    tasks = [ShardTask(path, contents.config, num_classes, config.deep) for path in paths]
    sizes = [shard.stat().st_size for path in paths if (shard := path.with_name(f"{path.name}.h5")).exists()]
    results = run_isolated(
        check_shard,
        tasks,
        workers=pool_workers(config.workers, len(tasks)),
        timeout=TIMEOUT + max(sizes, default=0) / SLOWEST,
        preload="torchvision.io" if config.deep else "avpt.store.verification.shard",
    )
    checks: dict[str, ShardCheck] = {}
    with track(len(tasks), "verify") as show:
        for task, result in results:
            check = _outcome(task, result)
            findings.add(check.problems)
            if check.num_problems > len(check.problems):
                findings.counts[check.name] = check.num_problems
            check.problems.clear()
            checks[check.name] = check
            show(len(checks), len(findings.counts))
    return checks


def _outcome(task: ShardTask, result: ShardCheck | Crashed | Hung) -> ShardCheck:
    if isinstance(result, ShardCheck):
        return result
    check = ShardCheck(task.path.name)
    check.tell(f"it can't be checked: {result.how}")
    return check


def report(config: VerifyConfig, checks: list[ShardCheck], findings: Findings) -> Report:
    """What was checked, and every problem that was found."""
    checked = {
        "shards": len(checks),
        "clips": sum(check.clips for check in checks),
        "frames": sum(check.frames for check in checks),
        "bytes": sum(check.bytes for check in checks),
    }
    num_problems = findings.counts.total()
    problems = [{"shard": p.shard, "clip": p.clip, "problem": p.problem} for p in findings.problems]
    summary = {"store": str(config.store), **checked, "deep": config.deep, "problems": problems}
    summary["num_problems"] = num_problems
    if not num_problems:
        row = (*(str(value) for value in checked.values()), "yes" if config.deep else "no")
        return Report(summary, tables=[Table(f"{config.store} is intact", (*checked, "deep"), [row])])
    shards = sum(name in findings.order for name in findings.counts)
    total = format_count(num_problems, "problem") + (f" in {format_count(shards, 'shard')}" if shards else "")
    first = findings.problems[0]
    where = f"{first.shard}, clip {first.clip}" if first.clip else first.shard
    return Report(
        summary,
        tables=[Table(f"{config.store}: {total}", ("shard", "clip", "problem"), problem_rows(findings), left=3)],
        problem=f"{config.store}: {total}, first {where}: {first.problem}; {advice(config.store, findings.needs)}",
    )


def problem_rows(findings: Findings) -> list[tuple[str, str, str]]:
    """The first problems of each shard, and how many more there are."""
    rows, shown = [], Counter[str]()
    for problem in findings.problems:
        shown[problem.shard] += 1
        if shown[problem.shard] <= ROWS_PER_SHARD:
            rows.append((problem.shard, problem.clip, problem.problem))
        elif shown[problem.shard] == ROWS_PER_SHARD + 1:
            rows.append((problem.shard, "", f"and {findings.counts[problem.shard] - ROWS_PER_SHARD} more"))
    return rows if len(rows) <= ROWS else [*rows[:ROWS], ("...", "", "--json has the others")]
