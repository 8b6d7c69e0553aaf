"""What can be opened, exported, generated with: the registries as tables, for terminal and docs."""

from typing import NamedTuple


class Table(NamedTuple):
    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def text(self) -> str:
        """Columns for a terminal."""
        wide = [max(len(row[i]) for row in [self.head, *self.rows]) for i in range(len(self.head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)) for row in self.rows]
        return "\n".join([f"{self.title}:", *(f"  {line}".rstrip() for line in lines)])

    def markdown(self) -> str:
        rows = [self.head, ("---",) * len(self.head), *self.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def tables() -> dict[str, Table]:
    """ "readers", "exporters", "generators" and "depth", as the registries have them."""
    from worldstereo.depth import estimators
    from worldstereo.exports import GROUPS, exporters
    from worldstereo.generators.registry import choices
    from worldstereo.inputs import readers

    read = [(r.name, r.title, " ".join(r.suffixes), r.group) for r in readers()]
    written = [(e.name, e.label, e.suffix, e.describes) for group in GROUPS
               for e in exporters().values() if e.group == group]  # fmt: skip
    made = [(choice.name, choice.label, choice.description) for choice in choices()]
    depth = [(estimator.name, estimator.describes) for estimator in estimators().values()]
    return {
        "readers": Table("Opens", ("name", "what", "suffix", "group"), read),
        "exporters": Table("Exports", ("name", "label", "file", "what is in it"), written),
        "generators": Table("Generators", ("name", "label", "what it does"), made),
        "depth": Table("Depth of single photos", ("name", "what it is"), depth),
    }
