"""The registries: what README and docs list is what is registered, and depth can be added to."""

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.tables import PAGES, ROOT, TABLE, filled
from worldstereo import depth, inputs
from worldstereo.cli import main
from worldstereo.cli.formats import tables
from worldstereo.depth import DepthEstimate, Estimator, default_camera
from worldstereo.depth import registry as depths
from worldstereo.errors import InputRefused, WeightsMissing
from worldstereo.exports import exporters
from worldstereo.generators.registry import names
from worldstereo.inputs.registry import accepted


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    monkeypatch.setenv(depth.MODEL_FOLDER, "none")
    depth.forget()
    yield
    depth.forget()


class Flat:
    """Everything at one depth."""

    def __init__(self, argument: str = "") -> None:
        self.far = float(argument or 2)

    def __call__(self, color, cameras=None):
        _, h, w = color.shape
        z = torch.full((1, h, w), self.far)
        return DepthEstimate(z, torch.ones(1, h, w), False, cameras or default_camera(w, h))


FLAT = Estimator("flat", "One depth everywhere.", Flat)


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_registries(page):
    """Mended by `python -m scripts.tables`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert TABLE.search(text)
    assert filled(text) == text
    assert filled(TABLE.sub(r"\1old\n\3", text)) == text  # a table that is wrong is found


def test_the_command_line_lists_everything(capsys):
    assert main(["formats"]) == 0
    told = capsys.readouterr().out
    rows = {line.split()[0] for line in told.splitlines() if line.startswith("  ")}
    everything = {r.name for r in inputs.readers()} | set(exporters()) | set(names())
    assert rows == everything | set(depth.estimators())
    assert set(tables()) == {"readers", "exporters", "generators", "depth"}


def test_a_refusal_names_what_the_readers_read():
    for reader in inputs.readers():
        if reader.group == "clouds and meshes":
            assert reader.suffixes[0][1:].upper() in accepted()
    with pytest.raises(InputRefused) as refused:
        inputs.read(b"nonsense" * 9, "a.thing")
    assert "PLY" in str(refused.value) and len(str(refused.value)) <= 200


def test_an_own_estimator_is_one_line(tmp_path):
    """Registered, it gives the depth of a single photo, with its argument."""
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    try:
        depth.register(FLAT)
        with pytest.raises(ValueError, match="'flat' is registered already"):
            depth.register(FLAT)
        depth.use("flat:5")
        assert depth.model_folder() == "flat:5"  # what the import process is told
        (view,) = inputs.read(tmp_path / "photo.png").views
        assert torch.allclose(view.depth[view.depth > 0], torch.tensor(5.0))
    finally:
        depth.unregister("flat")
    depth.use("layout")
    assert isinstance(depth.best_estimator(), depth.LayoutDepth)


@pytest.mark.parametrize("name", ["", "auto", "none", "a/b", "layout"])
def test_a_name_that_means_something_else_is_refused(name):
    with pytest.raises(ValueError, match="depth estimator"):
        depth.register(Estimator(name, "", Flat))


def test_an_estimator_of_a_package_is_found(monkeypatch):
    """By its entry point; one that cannot be loaded is left out."""

    class Entry:
        def __init__(self, name, value):
            self.name, self.value = name, value

        def load(self):
            if isinstance(self.value, Exception):
                raise self.value
            return self.value

    entries = [Entry("broken", ImportError("no")), Entry("flat", FLAT)]
    monkeypatch.setattr(depths, "installed", lambda group: entries)
    assert list(depth.estimators()) == ["layout", "transformers", "map", "flat"]
    depth.use("flat")
    assert isinstance(depth.best_estimator(), Flat)


def test_a_missing_argument_is_said_at_once():
    """And the estimator that was there stays."""
    for spec in ("map:nowhere.png", "transformers:no/such-model"):
        with pytest.raises(WeightsMissing):
            depth.use(spec)
    assert depth.model_folder() == "none"
