"""Print the test accuracy of finished runs side by side: `results_table.py "audio alone=RUN" ...`."""

import json
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    rows = []
    for argument in arguments:
        name, _, folder = argument.partition("=")
        test = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))["test"]
        shares = [f"{test[key]:.3f}" if key in test else "" for key in ("audio_accuracy", "visual_accuracy")]
        rows.append((name, f"{test['accuracy']:.3f}", *shares))
    header = ("test accuracy", "", "audio share", "visual share")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for name, *cells in [header, *rows]:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join([name.ljust(widths[0]), *right]).rstrip())


if __name__ == "__main__":
    main(sys.argv[1:])
