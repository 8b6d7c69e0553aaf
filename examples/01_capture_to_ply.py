"""A capture in, new views along an orbit, and the grown point cloud out as PLY.

python examples/01_capture_to_ply.py assets/examples/living-room room.ply
"""

import sys
from pathlib import Path

from worldstereo import Trajectory, WarpGenerator, World, default_view, explore, read, start
from worldstereo.exports import write


def main(capture: Path, out: Path, frames: int = 9) -> None:
    world = World(WarpGenerator())
    start(world, read(capture))
    before = len(world.scene.cloud)
    eye = default_view(world.scene).scaled(320, 240)
    path = Trajectory.preset("orbit", eye, distance=2 * world.scene.unit, frames=frames)
    clip = explore(world, path)
    write(world.scene, "ply", out)
    print(f"{len(clip)} views, {len(world.scene.cloud) - before:,} new points, written to {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
