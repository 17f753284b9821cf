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
    for row in [header, *rows]:
        cells = (cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    main(sys.argv[1:])
