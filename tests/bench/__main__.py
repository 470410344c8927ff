"""``python -m tests.bench [NAME ...] [--out DIR]``: run benchmarks, print their figures, write their JSON."""

from __future__ import annotations

import argparse
import json
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from trimtab.artifacts import git_revision, machine, versions

HERE = Path(__file__).parent


def main() -> None:
    """Run the named benchmarks, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = sorted(path.stem for path in HERE.glob("[a-z]*.py") if path.name != "__main__.py")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(names)}; none: all")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where <name>.json is written")
    arguments = parser.parse_args()
    for name in arguments.names or names:
        if name not in names:
            parser.error(f"no benchmark {name}; there are {', '.join(names)}")
        run(name, arguments.out)


def run(name: str, out: Path) -> dict[str, Any]:
    """Run one benchmark and write its result."""
    started = time.monotonic()
    figures, settings = import_module(f"tests.bench.{name}").run()
    result = {
        "name": name, "figures": figures, "settings": settings, "seconds": round(time.monotonic() - started, 1),
        "machine": machine(), "versions": versions(), "git": git_revision(),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{name} ({result['seconds']} s)")
    for figure, value in figures.items():
        print(f"  {figure}: {value}")
    return result


if __name__ == "__main__":
    main()
