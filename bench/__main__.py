"""`python -m bench` lists the benchmarks; with names, or `all`, it runs them and keeps results."""

import argparse
import importlib
import json
import sys
from pathlib import Path

from bench.harness import Context, Row, as_json, machine, table

HERE = Path(__file__).parent


def benchmarks() -> dict[str, object]:
    """Every benchmark by name, from the modules of this folder that have `BENCHMARKS`."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        if path.stem.startswith("_") or path.stem in ("harness", "plot"):
            continue
        try:
            module = importlib.import_module(f"bench.{path.stem}")
        except ImportError as error:
            print(f"{path.stem}: skipped, {error}", file=sys.stderr)
            continue
        found |= getattr(module, "BENCHMARKS", {})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks to run, or all; none: list them")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="JSON to add to")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only shows that it runs")
    arguments = parser.parse_args()
    known = benchmarks()
    if not arguments.names:
        for name, work in known.items():
            print(f"{name:24s} {(work.__doc__ or '').strip().splitlines()[0]}")
        return
    names = list(known) if arguments.names == ["all"] else arguments.names
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; known: {', '.join(known)}")
    rows: list[Row] = []
    context = Context(quick=arguments.quick)
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        fresh = known[name](context)  # type: ignore[operator]
        rows += fresh
        print(table(fresh), flush=True)
        if not arguments.quick:
            keep(arguments.out, name, fresh)
    here = machine()
    print(f"\n{here['processor']}, {here['processors']} processors, {here['threads']} threads, "
          f"load {here['load']}")  # fmt: skip


def keep(path: Path, name: str, rows: list[Row]) -> None:
    """Adds the rows of one benchmark to the JSON, in place of those of an earlier run."""
    held = json.loads(path.read_text()) if path.exists() else {}
    held[name] = as_json(rows)
    path.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
