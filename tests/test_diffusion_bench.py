"""The measurement that a machine with a card runs, on a tiny model: pieces, results, the table."""

import json
from pathlib import Path

from bench.diffusion import BEGIN, CHECKED, END, README, main


def test_modes_are_measured_in_pieces_and_the_table_follows(tmp_path, capsys):
    readme, out = tmp_path / "README.md", tmp_path / "kept.json"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    line = ["--tiny", "--out", str(out), "--readme", str(readme)]
    assert not main([*line, "--budget", "-1"])  # nothing is begun: the time is up
    assert "the same command goes on" in capsys.readouterr().out and not out.exists()
    text = readme.read_text()
    assert text.count("unmeasured") == len(CHECKED) and "old" not in text
    assert main(line)
    done = {one["mode"]: one for one in json.loads(out.read_text())}
    assert set(done) == set(CHECKED)
    for mode in ("full", "float8", "group", "sequential"):
        assert done[mode]["why"] == "" and done[mode]["seconds"] > 0
    assert "CUDA" in done["int4"]["why"] or "torchao" in done["int4"]["why"]
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "tiny model on this CPU: peak, s a step" in text and "unmeasured" not in text
    assert f"| 0.0 GiB, {done['full']['seconds']:.2f} s | parity, CPU |" in text
    before = out.read_text()
    assert main(line) and out.read_text() == before  # all is kept: nothing is measured twice
    assert capsys.readouterr().out.endswith("done\n")


def test_the_readme_has_room_for_the_table():
    text = Path(README).read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
