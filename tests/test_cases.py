"""Real files: captures and models as other tools write them give the right values."""

import pytest

from tests.cases import make
from worldstereo import inputs
from worldstereo.errors import InputRefused


@pytest.mark.parametrize("family", make.FAMILIES, ids=lambda f: f.__name__)
def test_real_files(family):
    """Each case of a kind, with its computed right value; or a refusal that names the reason."""
    wrong = []
    for case in family():
        try:
            capture = inputs.read(case.data, case.name)
        except InputRefused as error:
            if not isinstance(case.check, str) or case.check not in str(error):
                wrong.append(f"{case.name}: {error}")
            continue
        if isinstance(case.check, str):
            wrong.append(f"{case.name}: opened, though {case.check!r} was to be said")
            continue
        try:
            case.check(capture)
        except AssertionError as error:
            wrong.append(f"{case.name}: {str(error).splitlines()[0] if str(error) else 'wrong'}")
    assert not wrong, "\n".join(wrong)


def test_a_reader_is_one_line():
    """What is registered is found by suffix and by first bytes, and is listed."""
    from worldstereo.inputs import registry
    from worldstereo.inputs.limits import refusal

    def read(name, data, limits):
        raise refusal(name, "read by the new reader", "As meant")

    registry.register(inputs.Reader("cube", "A cube", (".cube",), lambda d: d[:4] == b"CUBE", read))
    try:
        assert any(r.name == "cube" for r in inputs.readers())
        for name, data in (("a.cube", b"1"), ("a.bin", b"CUBE1")):
            with pytest.raises(InputRefused, match="read by the new reader"):
                inputs.read(data, name)
        with pytest.raises(ValueError, match="registered already"):
            registry.register(inputs.Reader("cube", "A cube", read=read))
    finally:
        del registry._readers["cube"]


def test_a_survey_leaves_where_it_came_from():
    """UTM coordinates are moved to the origin for float32, and come back in the exported PLY."""
    import io

    import numpy as np
    import plyfile

    from tests.cases import room
    from worldstereo.exports.ply import write_ply
    from worldstereo.generators import WarpGenerator
    from worldstereo.world import World, start

    capture = inputs.read(make.room_of_survey()[0], "survey.las")
    assert any(capture.origin)
    world = World(WarpGenerator())
    start(world, capture)
    vertex = plyfile.PlyData.read(io.BytesIO(write_ply(world.scene)))["vertex"]
    found = np.stack([vertex[a] for a in "xyz"], axis=1)
    want = make.POINTS + room.ORIGIN_UTM
    assert found.dtype == np.float64
    assert np.abs(found.mean(0) - want.mean(0)).max() < 0.05
    assert np.abs(found.min(0) - want.min(0)).max() < 0.01
