"""Print the test accuracy of finished runs side by side: `results_table.py "audio alone=RUN" "both=RUN RUN RUN" ...`.

Several runs in one row are seeds: their mean and standard deviation.
"""

import json
import statistics
import sys
from pathlib import Path

COLUMNS = {"test accuracy": "accuracy", "audio share": "audio_accuracy", "visual share": "visual_accuracy"}


def main(arguments: list[str]) -> None:
    rows = []
    for argument in arguments:
        name, _, folders = argument.partition("=")
        tests = [
            json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))["test"]
            for folder in folders.split()
        ]
        rows.append((name, *(cell([test[key] for test in tests if key in test]) for key in COLUMNS.values())))
    header = ("", *COLUMNS)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for name, *cells in [header, *rows]:
        right = (value.rjust(width) for value, width in zip(cells, widths[1:], strict=True))
        print("  ".join([name.ljust(widths[0]), *right]).rstrip())


def cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main(sys.argv[1:])
