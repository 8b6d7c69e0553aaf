"""Photos without poses in: where each was taken, new views between them, and a COLMAP model out.

python examples/02_photos_without_poses.py my-photos/ model.zip
"""

import sys
from pathlib import Path

from worldstereo import Trajectory, WarpGenerator, World, default_view, explore, read, start
from worldstereo.exports import write


def main(photos: Path, out: Path, frames: int = 9) -> None:
    capture = read(photos, on_step=lambda step, total, message: print(f"\r{message}", end=" "))
    print()
    for view in capture.views:
        x, y, z = view.cameras.position.tolist()
        focal = float(view.cameras.K[0, 0])
        print(f"{view.name}: at {x:.2f}, {y:.2f}, {z:.2f}; focal length {focal:.0f} pixels")
    for notice in capture.notices:  # what was left out or guessed, one line each
        print(notice)
    world = World(WarpGenerator())
    start(world, capture)
    eye = default_view(world.scene).scaled(320, 240)
    path = Trajectory.preset("orbit", eye, distance=2 * world.scene.unit, frames=frames)
    clip = explore(world, path)
    write(world.scene, "colmap", out)
    print(f"{len(capture.views)} photos, {len(clip)} generated views, written to {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
