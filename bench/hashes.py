"""Hashes of what the example worlds become: the check that a change of structure changes no bit.

    python -m bench.hashes > before.txt      then the same after, and compare

For each example: start, two clips, undo, save and reopen; frames, depth, origin and cloud of each.
"""

import hashlib
import tempfile
from pathlib import Path

from worldstereo.generators import WarpGenerator
from worldstereo.inputs import read
from worldstereo.project import load_world, save_world
from worldstereo.scene import Scene
from worldstereo.trajectory import Trajectory
from worldstereo.world import World, default_view, explore, pivot_distance, start

EXAMPLES = Path(__file__).resolve().parent.parent / "assets" / "examples"


def digest(*tensors: object) -> str:
    """The first 16 digits of SHA-256 over the tensors' bytes."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())  # type: ignore[attr-defined]
    return sha.hexdigest()[:16]


def of_scene(scene: Scene) -> str:
    """Cloud and views."""
    views = [t for v in scene.views for t in (v.color, v.depth, v.cameras.c2w)]
    return digest(scene.cloud.points, scene.cloud.colors, *views)


def main() -> None:
    """Prints one line a state."""
    for example in sorted(p for p in EXAMPLES.iterdir() if p.is_dir()):
        world = World(WarpGenerator())
        start(world, read(example))
        print(f"{example.name} start {of_scene(world.scene)}", flush=True)
        eye = default_view(world.scene).scaled(320, 240)
        reach = pivot_distance(world.scene, eye)
        for name in ("orbit", "dolly"):
            path = Trajectory.preset(name, eye, distance=reach, frames=5)
            clip = explore(world, path)
            frames = digest(clip.color_u8, clip.depth, clip.origin, clip.confidence_u8)
            print(f"{example.name} {name} {frames} {of_scene(world.scene)}", flush=True)
        world.undo()
        print(f"{example.name} undo {of_scene(world.scene)}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "world.world"
            save_world(world, saved)
            opened = World(WarpGenerator())
            load_world(opened, saved)
            print(f"{example.name} reopened {of_scene(opened.scene)}", flush=True)


if __name__ == "__main__":
    main()
