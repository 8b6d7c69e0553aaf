"""Why a pixel looks as it does: which remembered pixels it came from, and which were rejected.

python examples/05_inspect.py assets/examples/living-room
"""

import sys
from pathlib import Path

from worldstereo import Guide, Origin, Trajectory, WarpGenerator, World, default_view, read, start
from worldstereo.memory.stereo.dense import explain


def main(capture: Path) -> None:
    world = World(WarpGenerator())
    scene = start(world, read(capture))
    eye = default_view(scene).scaled(320, 240)
    path = Trajectory.preset("orbit", eye, distance=2 * scene.unit, frames=9)
    frame = Guide(scene, path)[1]
    for origin in Origin:
        share = float((frame.origin == int(origin)).float().mean())
        print(f"{origin.name.lower():8} {share:6.1%} of the second frame")
    pixel = (160.5, 120.5)
    views = [scene.views[i] for i in frame.references]
    for row in explain(frame.camera, views, frame.depth, pixel, unit=scene.unit):
        where = f"view {frame.references[row.view]}, pixel {row.pixel[0]:.0f} {row.pixel[1]:.0f}"
        print(f"{pixel}: {row.weight:4.0%} from {where} {row.reason or ''}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
