"""`python -m bench.plot`: from `results.json` the tables of `README.md` and `cost.svg`.

The plot shows cost against size, log-log, of everything measured at more than one size.
"""

import json
import math
from pathlib import Path

from bench.harness import Row, table

HERE = Path(__file__).parent
PANELS = (
    ("neighbours", "neighbours k=8, growth", "Neighbours, k=8", "CPU ms"),
    ("update", "update, 20000 points a frame", "Update, 20,000 points", "CPU ms"),
    ("render", "splat 480x832, 3x3", "Splat 480x832, 3x3", "CPU ms"),
    (
        "attention",
        "attention, 6240 queries, d=128, 1 head(s), Morton order",
        "Attention, 6,240 queries, 31 candidates",
        "CPU ms",
    ),
)
COLORS = ("#1f6feb", "#8250df", "#bf8700", "#57606a", "#cf222e", "#1a7f37", "#bc4c00", "#0a7ea4")
START, END = "<!-- results -->", "<!-- end of results -->"
WIDTH, HEIGHT, LEFT, TOP = 330, 250, 52, 34


def curves(rows: list[dict], name: str) -> dict[str, list[tuple[float, float]]]:
    """CPU time by size of each variant, of those measured at more than one size."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        if row["name"].startswith(name) and row["size"] > 0 and row["cpu_ms"] > 0:
            found.setdefault(row["variant"], {})[row["size"]] = row["cpu_ms"]
    return {who: sorted(points.items()) for who, points in found.items() if len(points) > 1}


def panel(title: str, lines: dict[str, list[tuple[float, float]]], x: int) -> str:
    """One log-log diagram as SVG elements, its left edge at `x`."""
    sizes = [math.log10(n) for line in lines.values() for n, _ in line]
    costs = [math.log10(c) for line in lines.values() for _, c in line]
    low, high = math.floor(min(costs)), math.ceil(max(costs))
    first, last = min(sizes), max(sizes)
    across = (WIDTH - LEFT - 16) / max(last - first, 1e-9)
    up = (HEIGHT - TOP - 70) / max(high - low, 1)

    def place(n: float, c: float) -> tuple[float, float]:
        left = x + LEFT + (math.log10(n) - first) * across
        return left, TOP + (high - math.log10(c)) * up

    out = [f'<text x="{x + LEFT}" y="20" font-weight="600">{title}</text>']
    for power in range(low, high + 1):
        y = place(10**first, 10**power)[1]
        out.append(
            f'<path d="M{x + LEFT} {y:.1f}H{x + WIDTH - 16}" stroke="#d0d7de"/>'
            f'<text x="{x + LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} ms</text>'
        )
    for power in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1):
        left = place(10**power, 10**low)[0]
        name = f"{10**power:,}"
        out.append(f'<text x="{left:.1f}" y="{HEIGHT - 56}" text-anchor="middle">{name}</text>')
    for i, (who, line) in enumerate(lines.items()):
        color = COLORS[i % len(COLORS)]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in (place(*point) for point in line))
        out.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        out += [
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{color}"/>'
            for a, b in (place(*point) for point in line)
        ]
        out.append(f'<text x="{x + LEFT}" y="{HEIGHT - 38 + 13 * i}" fill="{color}">{who}</text>')
    return "\n".join(out)


def main() -> None:
    held = json.loads((HERE / "results.json").read_text())
    parts, x = [], 0
    for key, name, title, _ in PANELS:
        lines = curves(held.get(key, {}).get("rows", []), name)
        if lines:
            parts.append(panel(title, dict(list(lines.items())[: len(COLORS)]), x))
            x += WIDTH
    height = HEIGHT + 70
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x} {height}" width="{x}" '
        f'height="{height}" font-family="sans-serif" font-size="11">'
        f'<rect width="{x}" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
    (HERE / "cost.svg").write_text(svg)
    readme = HERE / "README.md"
    before, rest = readme.read_text().split(START)
    after = rest.split(END)[1]
    tables = []
    for name, result in held.items():
        machine = result["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
        load = ", ".join(f"{v:.1f}" for v in machine["load"] or [])
        tables.append(
            f"### {name}\n\n{machine['processor']}, {machine['processors']} processors, "
            f"{machine['threads']} threads, load {load}, GPU {machine['gpu'] or 'none'}; "
            f"Python {machine['python']}, {versions}.\n\n"
            + table([Row(**row) for row in result["rows"]])
        )
    readme.write_text(before + START + "\n" + "\n\n".join(tables) + "\n" + END + after)


if __name__ == "__main__":
    main()
