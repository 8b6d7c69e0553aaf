"""Size and time of each export, before it is made: rough estimates by points, pixels and frames."""

from worldstereo.exports.registry import Estimate
from worldstereo.reconstruct import FACES, VOXEL, VOXELS_PER_SECOND
from worldstereo.scene import Scene


def _each(scene: Scene, size: float, rate: float = 2e6) -> Estimate:
    n = len(scene.cloud)
    return Estimate(int(2_000 + size * n), 0.1 + n / rate)


def points(scene: Scene) -> Estimate:
    return _each(scene, 44)


def text(scene: Scene) -> Estimate:
    return _each(scene, 75, 2e5)


def packed(scene: Scene) -> Estimate:
    return _each(scene, 16, 5e5)


def splats(scene: Scene) -> Estimate:
    return _each(scene, 68)


def spz(scene: Scene) -> Estimate:
    return _each(scene, 12, 1e6)


def html(scene: Scene, megabytes: float = 15.0) -> Estimate:
    n = min(len(scene.cloud), 400_000)
    film = sum(int(c.color_u8.numel() * 0.02) for c in scene.clips[-1:])
    size = int(min(40_000 + 17 * n + 1.4 * film, 1e6 * megabytes))
    return Estimate(size, 1 + n / 1e6)


def mesh(scene: Scene, quality: str = "standard") -> Estimate:
    """From the cloud, whose points tile the surface: `reconstruct.estimate_surface` counts better
    and takes a second."""
    chosen = [v for v in scene.views if bool(v.mask.any())]
    if not chosen:
        return Estimate(0, 0.0)
    area = float((4 * scene.cloud.radii.double() ** 2).sum())
    voxel = VOXEL[quality] * scene.unit / float(chosen[0].cameras.K[0, 0])
    faces = min(FACES[quality], 3 * area / voxel**2)
    blocks = 2.5 * area / (8 * voxel) ** 2
    seconds = 3 + blocks * 512 * max(2.0, 0.25 * len(chosen)) / VOXELS_PER_SECOND + faces / 2e4
    return Estimate(int(36 * faces + 1.0 * 2048**2), seconds + 0.3 * len(chosen))


def _pixels(scene: Scene) -> int:
    return sum(v.width * v.height for v in scene.views)


def colmap(scene: Scene) -> Estimate:
    pixels, n = _pixels(scene), len(scene.cloud)
    return Estimate(int(1.5 * pixels + 110 * n), 1 + pixels / 1.5e7 + n / 1e5)


def transforms(scene: Scene) -> Estimate:
    pixels = _pixels(scene)
    return Estimate(int(2.2 * pixels + 44 * len(scene.cloud)), 1 + pixels / 1e7)


def _clip(scene: Scene) -> int:
    return int(scene.clips[-1].color_u8.numel() // 3)


def mp4(scene: Scene) -> Estimate:
    return Estimate(int(0.06 * _clip(scene)), 0.5 + _clip(scene) / 5e6)


def images(scene: Scene) -> Estimate:
    return Estimate(int(2.5 * _clip(scene)), 0.5 + _clip(scene) / 1e7)


def trajectory(scene: Scene) -> Estimate:
    return Estimate(700 * len(scene.clips[-1]), 0.1)


def conventions(scene: Scene) -> Estimate:
    return Estimate(2_000 + 150 * len(scene.clips), 0.1)
