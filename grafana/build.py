"""Write the boards' JSON files; ``--check`` only compares, and exits 1 when they differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from consumers import consumers
from overview import overview

BOARDS = {"streamqueue-overview.json": overview, "streamqueue-consumers.json": consumers}
FOLDER = Path(__file__).parent / "dashboards"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: build.py [--check]", file=sys.stderr)
        return 2
    differ = []
    for name, board in BOARDS.items():
        text = json.dumps(board(), indent=2, ensure_ascii=False) + "\n"
        path = FOLDER / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        differ.append(name)
        if not arguments:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    if arguments and differ:
        print(
            f"{' and '.join(differ)} in grafana/dashboards/ is not what grafana/build.py makes: "
            "run `python grafana/build.py` and commit the result.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
