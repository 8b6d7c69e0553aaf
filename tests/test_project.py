"""Projects: equal bit for bit, whole after any crash, and never trusted."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
import zlib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import InstantGenerator, room, room_capture, turned_cameras
from tests.test_edits import opened, spoiled_capture
from worldstereo.cameras import Cameras
from worldstereo.errors import ExportError, InputRefused, WorldBusy
from worldstereo.project import (
    Project,
    ProjectState,
    is_project,
    load,
    load_world,
    packed,
    save,
    save_world,
    state_of,
)
from worldstereo.project import _files as project_files
from worldstereo.project._codec import Known
from worldstereo.project._files import checksum, compact_json
from worldstereo.scene import Clip, PointCloud, Scene, View
from worldstereo.trajectory import Trajectory
from worldstereo.views.registration import Registration
from worldstereo.world import (
    Original,
    PackedDepth,
    StepRecord,
    World,
    explore,
    set_registration,
    start,
)

HERE = Path(__file__).resolve().parent


def example(steps: int = 1, points: int = 40_009) -> ProjectState:
    """A state with every kind of value in it; large enough for chunks."""
    n = 3 + steps
    cameras = turned_cameras(n)
    color, depth = room(cameras)
    views = [
        View.of(color[i], depth[i], cameras[i], step=max(0, i - 2), frame=i, name=f"ü {i}")
        for i in range(n)
    ]
    seeded = torch.Generator().manual_seed(9)
    xyz = torch.randn(points + 500 * steps, 3, generator=seeded)
    cloud = PointCloud.of(xyz, source=torch.arange(len(xyz)) % 3)
    clip = Clip.of(
        color,
        depth,
        (depth > 3).to(torch.uint8) * 2,
        depth / 9,
        Trajectory(cameras, "flight", 23.976, torch.arange(n).double() ** 2),
        seed=2**62 + 1,
        references=tuple((i, i + 1) for i in range(n)),
    )
    registration = Registration(
        1, cameras, cameras, torch.rand(n, generator=seeded), (True,) * n, ("a note",)
    )
    scene = Scene(
        revision=4 + steps,
        name="garden",
        views=tuple(views),
        cloud=cloud,
        clips=(clip,),
        camera_fixed=(torch.rand(29, 37) > 2, torch.full((3, 29, 37), 0.25)),
        unit=1 / 3,
        metres_per_unit=None,
        notices=("one", "two"),
    )
    half = torch.randn(7, 5, generator=seeded)
    return ProjectState(
        scene=scene,
        registration=registration,
        history=(StepRecord("open", 0, n, 7, details={"seeds": [1, 2], "deep": {"x": 0.1}}),),
        geometry={"points": xyz, "empty": torch.zeros(0, 3), "scalar": torch.tensor(3)},
        stereo={
            "half": half.half(),
            "b": half.bfloat16(),
            "odd": half.double() / 0,
            "i8": half.char(),
        },
        plan=Trajectory(cameras).to_json(),
        settings={"seed": 7, "sizes": [640, 480], "name": None, "on": True},
        original=Original(
            tuple(PackedDepth.of(depth[i] + 0.5 * (i == 1)) for i in range(3)),
            PointCloud.of(xyz[:29]),
        ),
    )


@pytest.fixture(scope="module")
def state() -> ProjectState:
    return example()


def same(a, b) -> bool:
    """Equal in type, bits and structure."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return alike and bytes_of(a) == bytes_of(b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return a == b


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def folder(path: Path) -> dict[str, bytes]:
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith(".lock")]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def members(path: Path) -> dict[str, float]:
    return {p.name: p.stat().st_mtime_ns for p in (path / "members").iterdir()}


# ---- round trips ---------------------------------------------------------------------------------


def test_what_is_loaded_is_what_was_saved_bit_for_bit(state, tmp_path):
    save(state, tmp_path / "a.world")
    assert is_project(tmp_path / "a.world")
    assert same(load(tmp_path / "a.world"), state)


def test_an_empty_world_round_trips(tmp_path):
    save(ProjectState(), tmp_path / "a.world")
    assert same(load(tmp_path / "a.world"), ProjectState())


def test_the_packed_file_holds_the_same(state, tmp_path):
    data = packed(state)
    assert data == packed(state)
    path = tmp_path / "garden.world.zip"
    path.write_bytes(data)
    assert is_project(path)
    assert same(load(path), state)
    save(state, tmp_path / "a.world")
    with zipfile.ZipFile(path) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    assert inside == folder(tmp_path / "a.world")


def test_saving_twice_gives_the_same_bytes_and_writes_nothing(state, tmp_path):
    save(state, tmp_path / "a.world")
    first, times = folder(tmp_path / "a.world"), members(tmp_path / "a.world")
    assert save(state, tmp_path / "a.world") == 0
    assert folder(tmp_path / "a.world") == first
    assert members(tmp_path / "a.world") == times
    save(load(tmp_path / "a.world"), tmp_path / "b.world")
    assert folder(tmp_path / "b.world") == first


def test_a_step_costs_what_it_changed(tmp_path):
    """One more view and rows at the end of the cloud: old views and chunks stay as they are."""
    small, large = example(1, 400_000), example(2, 400_000)
    with Project(tmp_path / "a.world") as project:
        whole = project.save(small)
        before = members(tmp_path / "a.world")
        change = project.save(large)
    kept = members(tmp_path / "a.world")
    assert all(kept[name] == before[name] for name in set(before) & set(kept))
    assert len(set(before) & set(kept)) > 5
    assert change < whole / 2
    assert same(load(tmp_path / "a.world"), large)
    assert same(load(tmp_path / "a.world", previous=True), small)


def test_old_members_are_swept_after_two_saves(tmp_path):
    for steps in (1, 2, 3):
        save(example(steps), tmp_path / "a.world")
    named = set()
    for manifest in ("project.json", "previous.json"):
        named |= set(json.loads((tmp_path / "a.world" / manifest).read_text())["members"])
    assert {n.removesuffix(".safetensors") for n in members(tmp_path / "a.world")} == named


def test_a_tensor_that_was_written_into_is_not_taken_for_the_old_one():
    known, tensor = Known(), torch.zeros(3)
    known.put(tensor, ["x"])
    assert known.get(tensor) == ["x"]
    tensor += 1
    assert known.get(tensor) is None


# ---- crashes and full disks ----------------------------------------------------------------------


def run_kills(root: Path, rounds: int, points: int) -> dict:
    paths = os.pathsep.join([str(HERE.parent), str(HERE), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "project_kills.py"), str(root), str(rounds), str(points)],
        env=environment,
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return json.loads(done.stdout)


def test_a_killed_save_leaves_the_old_project_or_the_new_one(tmp_path):
    """Killed at each labelled step and at 20 random times; then the next save cleans up."""
    found = run_kills(tmp_path, 20, 100_000)
    assert found["corrupt"] == 0, found
    assert found["inside"] >= 3, found  # how many fall inside depends on the machine's load
    assert found["at"]["members-durable"] == found["at"]["before-open"] == "old"
    assert found["at"]["manifest-written"] == found["at"]["swept"] == "new"
    assert "never reached" not in found["at"].values()
    assert found["swept"] == []


@pytest.mark.parametrize("label", ["half-written", "members-durable", "before-replace"])
def test_a_full_disk_is_one_line_and_the_project_stays(state, tmp_path, label):
    save(state, tmp_path / "a.world")

    def full(name: str) -> None:
        if name == label:
            raise OSError(errno.ENOSPC, "No space left on device")

    with (
        Project(tmp_path / "a.world", point=full) as project,
        pytest.raises(ExportError, match="a.world could not be saved: No space left") as refusal,
    ):
        project.save(example(2))
    assert "\n" not in str(refusal.value)
    assert same(load(tmp_path / "a.world"), state)
    assert not list((tmp_path / "a.world").rglob("*.part"))
    save(example(2), tmp_path / "a.world")
    assert same(load(tmp_path / "a.world"), example(2))


def test_a_value_that_cannot_be_saved_is_named(state, tmp_path):
    save(state, tmp_path / "a.world")
    for odd, where in ((object(), "settings.x"), (float("nan"), "settings.x")):
        with pytest.raises(ExportError, match=where):
            save(replace(state, settings={"x": odd}), tmp_path / "a.world")
    assert same(load(tmp_path / "a.world"), state)


def test_the_second_writer_is_told_who_holds_the_project(state, tmp_path):
    with (
        Project(tmp_path / "a.world"),
        pytest.raises(WorldBusy, match=rf"a.world is open in .*process {os.getpid()}"),
    ):
        Project(tmp_path / "a.world")
    with Project(tmp_path / "a.world") as project:  # free again; saved from another thread
        thread = threading.Thread(target=project.save, args=(state,))
        thread.start()
        thread.join()
    assert same(load(tmp_path / "a.world"), state)


# ---- what others hand in -------------------------------------------------------------------------


def refused(path: Path, match: str) -> None:
    with pytest.raises(InputRefused, match=match) as refusal:
        load(path)
    text = str(refusal.value)
    assert "\n" not in text
    assert len(text) <= 200
    assert str(path.parent) not in text


def damaged_manifest(path: Path, change, *, sign: bool = True) -> None:
    manifest = json.loads((path / "project.json").read_text())
    change(manifest)
    if sign:
        body = {key: manifest[key] for key in ("small", "members", "state")}
        manifest["checksum"] = checksum(body)
    (path / "project.json").write_bytes(compact_json(manifest))


def test_a_flipped_byte_is_found_and_its_place_named(state, tmp_path):
    save(replace(state, settings={}), tmp_path / "a.world")
    save(state, tmp_path / "a.world")
    view = json.loads((tmp_path / "a.world/project.json").read_text())["state"]["scene"]["views"][2]
    member = tmp_path / "a.world/members" / f"{view['depth']['in'][0]}.safetensors"
    content = bytearray(member.read_bytes())
    content[-1] ^= 1
    member.write_bytes(content)
    refused(tmp_path / "a.world", r"scene.views\[2\].*checksum")
    member.unlink()
    refused(tmp_path / "a.world", r"scene.views\[2\].*missing")


def test_a_changed_manifest_is_found_and_the_save_before_opens(state, tmp_path):
    save(replace(state, settings={"first": 1}), tmp_path / "a.world")
    save(state, tmp_path / "a.world")
    damaged_manifest(
        tmp_path / "a.world", lambda m: m["state"]["scene"].update(name="x"), sign=False
    )
    refused(tmp_path / "a.world", "project.json is damaged")
    assert load(tmp_path / "a.world", previous=True).settings == {"first": 1}


def test_a_newer_version_says_update(state, tmp_path):
    save(state, tmp_path / "a.world")
    damaged_manifest(tmp_path / "a.world", lambda m: m.update(version=2))
    refused(tmp_path / "a.world", "newer WorldStereo.*update")


LIES = {
    "slip": lambda m: m["members"].update({"../../etc/passwd": 9}),
    "huge member": lambda m: m["members"].update({"a" * 64: 10**15}),
    "many bytes": lambda m: m["members"].update({f"{i:064x}": 10**10 for i in range(9)}),
    "negative": lambda m: m["members"].update({"a" * 64: -1}),
    "boolean": lambda m: m["members"].update({"a" * 64: True}),
    "unlisted": lambda m: m["state"]["geometry"]["items"]["points"].update({"in": ["b" * 64]}),
    "no members": lambda m: m.update(members=[]),
    "class": lambda m: m["state"]["scene"].update({"$": "Popen"}),
    "class of another": lambda m: m["state"]["scene"].update({"$": "View"}),
    "field": lambda m: m["state"]["scene"].update({"__class__": 1}),
    "missing field": lambda m: m["state"]["scene"]["views"][0].pop("depth"),
    "scene": lambda m: m["state"].update(scene=None),
    "history": lambda m: m["state"].update(history=[1]),
    "type": lambda m: m["state"]["geometry"]["items"]["points"].update(type="object"),
    "shape": lambda m: m["state"]["geometry"]["items"]["points"].update(shape=[2**40, 3]),
    "key": lambda m: m["state"]["geometry"]["items"]["points"].update(key=["x"]),
    "bomb": lambda m: m["state"]["geometry"]["items"]["points"].update(
        {"in": m["state"]["geometry"]["items"]["points"]["in"][:1] * 99_000}
    ),
    "text for a size": lambda m: m["state"]["scene"]["views"][0]["cameras"].update(width="9"),
    "size": lambda m: m["state"]["scene"]["views"][0]["cameras"].update(width=38),
    "pose": lambda m: m["state"]["scene"]["views"][0]["cameras"].update(
        K=m["state"]["scene"]["views"][0]["cameras"]["c2w"]
    ),
    "unit": lambda m: m["state"]["scene"].update(unit=-1.0),
    "views": lambda m: m["state"]["scene"].update(views={"$": "list", "items": 3}),
    "plan": lambda m: m["state"].update(plan='{"format": "x"}'),
    "version": lambda m: m.update(version=0),
    "small": lambda m: m.update(small="c" * 64),
    "small of another kind": lambda m: m.update(small=["c" * 64]),
    "other views": lambda m: m["state"]["registration"].update(agrees=[True]),
    "earlier": lambda m: m["state"]["registration"].update(
        earlier=[m["state"]["registration"]["given"]]
    ),
    "given size": lambda m: m["state"]["scene"]["views"][0]["given"].update(width=38),
    "revision": lambda m: m["state"]["history"][0]["details"]["items"].update(registration="x"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_manifest_is_refused(state, tmp_path, lie):
    save(state, tmp_path / "a.world")
    damaged_manifest(tmp_path / "a.world", LIES[lie])
    refused(tmp_path / "a.world", "^a.world: ")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"format":"worldstereo-project","version":NaN}', "null"]
)
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "a.world").mkdir()
    (tmp_path / "a.world/project.json").write_text(text)
    refused(tmp_path / "a.world", "^a.world: ")


def test_an_infinite_depth_with_a_sound_checksum_is_refused(state, tmp_path):
    bad = replace(state.scene.views[0], depth=torch.full((1, 29, 37), torch.inf))
    save(replace(state, scene=replace(state.scene, views=(bad,))), tmp_path / "a.world")
    refused(tmp_path / "a.world", r"scene.views\[0\]: its parts")


def test_links_and_pipes_are_no_members(state, tmp_path):
    save(state, tmp_path / "a.world")
    member = next((tmp_path / "a.world/members").iterdir())
    (tmp_path / "outside").write_bytes(member.read_bytes())
    member.unlink()
    member.symlink_to(tmp_path / "outside")
    refused(tmp_path / "a.world", "^a.world: ")
    member.unlink()
    os.mkfifo(member)
    refused(tmp_path / "a.world", "^a.world: ")


def test_zips_with_other_things_in_them_are_refused(state, tmp_path):
    sound = tmp_path / "sound.zip"
    sound.write_bytes(packed(state))
    for odd in ("../x", "/etc/passwd", "members/../../x", "members/x.py", "a\\b"):
        path = tmp_path / "odd.zip"
        path.write_bytes(sound.read_bytes())
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(odd, b"x")
        refused(path, "not part of a project")
    path.write_bytes(sound.read_bytes()[:-30])
    refused(path, "damaged")
    assert not is_project(path)
    content = bytearray(sound.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 9] = b"123456789"
    path.write_bytes(content)
    refused(path, "damaged")


def test_a_zip_that_unpacks_to_far_more_than_it_is_is_refused(state, tmp_path, monkeypatch):
    """By what its directory says, before a member is read; packed again as tightly as others do."""
    names = zipfile.ZipFile(io.BytesIO(packed(state)))
    with names, zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as tight:
        for name in names.namelist():
            tight.writestr(name, names.read(name))
    assert same(load(tmp_path / "a.zip"), state)
    with zipfile.ZipFile(tmp_path / "a.zip", "a", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr(f"members/{'a' * 64}.safetensors", bytes(5 * 10**7))
    assert same(load(tmp_path / "a.zip"), state)
    monkeypatch.setattr(project_files, "SMALL_BYTES", 10**6)
    refused(tmp_path / "a.zip", "^a.zip: unpacks to 5[0-9]{7} bytes from")


def test_a_folder_without_a_project_is_none(tmp_path):
    (tmp_path / "x").mkdir()
    assert not is_project(tmp_path / "x")
    assert not is_project(tmp_path / "missing")
    refused(tmp_path / "x", "holds no project.json")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
def test_any_damage_to_a_zip_is_refused_or_harmless(tmp_path_factory, place, byte, cut):
    """Nothing but `InputRefused` comes out; what is accepted is the very state that was saved."""
    small = replace(SMALL, plan=None)
    data = bytearray(packed(small))
    at = int(place * (len(data) - 1))
    if cut:
        del data[at:]
    else:
        data[at] = byte
    path = tmp_path_factory.mktemp("fuzz") / "x.zip"
    path.write_bytes(data)
    try:
        assert same(load(path), small)
    except InputRefused as refusal:
        assert "\n" not in str(refusal)


def _small() -> ProjectState:
    cameras = Cameras(torch.eye(3), torch.eye(4), 2, 3)
    view = View.of(torch.rand(3, 3, 2), torch.ones(1, 3, 2), cameras)
    return ProjectState(Scene(views=(view,)), geometry={"x": torch.arange(5)})


SMALL = _small()


def test_members_are_named_by_their_own_hash(state, tmp_path):
    save(state, tmp_path / "a.world")
    for path in (tmp_path / "a.world/members").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


# ---- worlds --------------------------------------------------------------------------------------


def test_a_reopened_world_goes_on_as_the_first_would_have(instant, tmp_path):
    """Save, reopen elsewhere, take the same step in both: equal bit for bit, plan and all."""
    first, second = World(instant, name="a"), World(instant)
    start(first, room_capture())
    path = Trajectory.preset("orbit", first.scene.views[0].cameras, distance=3.0, frames=3)
    explore(first, path, seed=5)
    save_world(first, tmp_path / "a.world", plan=path, settings={"size": [80, 64]})
    plan, picked = load_world(second, tmp_path / "a.world")
    assert plan is not None
    assert plan.to_json() == path.to_json()
    assert picked == {"size": [80, 64]}
    assert same(second.scene, first.scene)
    assert second.history == first.history
    for world in (first, second):
        explore(world, path.reversed(), seed=6)
    assert same(state_of(second), state_of(first))


def test_registration_switched_after_reopening_is_as_before_saving(tmp_path):
    """The depth and the cloud as they were given are in the file, not what intake made of them."""
    capture = spoiled_capture()
    first, second = opened(True, capture), World(InstantGenerator(), max_points=50_000)
    given = [view for view in first.scene.views if view.step == 0]
    raw = [(a.depth - b.depth).abs().max() for a, b in zip(given, capture.views, strict=True)]
    assert min(raw) > 0.01  # cleaned depth is another
    save_world(first, tmp_path / "a.world")
    load_world(second, tmp_path / "a.world")
    for world in (first, second):
        set_registration(world, False)
    assert same(state_of(second), state_of(first))


def test_a_file_that_kept_no_original_depth_still_opens(state, tmp_path):
    """As older versions wrote it: neither named nor among the members."""
    save(replace(state, original=None), tmp_path / "a.world")
    damaged_manifest(tmp_path / "a.world", lambda m: m["state"].pop("original"))
    assert same(load(tmp_path / "a.world"), replace(state, original=None))


def test_projects_with_the_fields_old_names_still_open(state, tmp_path):
    """What was saved before the fields were renamed, written here by hand."""
    old = {
        "color_u8": "color8", "confidence_u8": "confidence8", "stereo_u8": "stereo8",
        "log_gain": "gain", "camera_fixed": "rig",
    }  # fmt: skip

    def aged(value: Any) -> Any:
        if isinstance(value, list):
            return [aged(one) for one in value]
        if not isinstance(value, dict):
            return value
        names = old if value.get("$") in ("View", "Clip", "Scene") else {}
        return {names.get(name, name): aged(one) for name, one in value.items()}

    save(state, tmp_path / "a.world")
    damaged_manifest(tmp_path / "a.world", lambda m: m.update(state=aged(m["state"])))
    text = (tmp_path / "a.world" / "project.json").read_text()
    assert all(f'"{name}":' in text for name in old.values())
    assert same(load(tmp_path / "a.world"), state)


def test_original_depth_is_stored_once_and_apart(state, tmp_path):
    """A step that changes nothing of it writes nothing of it, however small it is."""
    with Project(tmp_path / "a.world") as project:
        project.save(state)
        before = members(tmp_path / "a.world")
        project.save(replace(state, settings={"seed": 8}))
        assert members(tmp_path / "a.world") == before


@pytest.mark.parametrize(
    "lie",
    [
        lambda o: replace(o, depth=o.depth[:2]),
        lambda o: replace(o, depth=(o.depth[0], replace(o.depth[1], shape=(1, 7, 9)), o.depth[2])),
        lambda o: bent(o, data=torch.zeros(99, dtype=torch.uint8)),
        lambda o: bent(o, data=o.depth[0].data[:-9]),
        lambda o: bent(o, levels=o.depth[0].levels[:1]),
        lambda o: bent(o, levels=None),
        lambda o: bent(o, levels=-o.depth[0].levels),
        lambda o: bent(o, data=torch.frombuffer(bytearray(zlib.compress(bytes(10**8))),
                                                dtype=torch.uint8)),
    ],
)  # fmt: skip
def test_original_depth_that_lies_is_refused(state, tmp_path, lie):
    save(replace(state, original=lie(state.original)), tmp_path / "a.world")
    refused(tmp_path / "a.world", "original: does not fit the views")


def bent(original: Original, **changes) -> Original:
    return replace(original, depth=(replace(original.depth[0], **changes), *original.depth[1:]))


def test_a_project_whose_memories_do_not_fit_leaves_the_world_alone(instant, state, tmp_path):
    world = World(instant)
    start(world, room_capture())
    before = state_of(world)
    save(replace(state, geometry={"memory.points": torch.zeros(3, 2)}), tmp_path / "a.world")
    with pytest.raises(InputRefused, match="a.world: its memories do not fit"):
        load_world(world, tmp_path / "a.world")
    assert same(state_of(world), before)


def test_a_world_inside_a_step_is_busy(instant, tmp_path):
    world = World(instant)
    with world.step("x"), pytest.raises(WorldBusy):
        save_world(world, tmp_path / "a.world")
