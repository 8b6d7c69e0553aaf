"""The readers that come with the library, one `register` line each, and those of other packages."""

import logging
from functools import cache

from worldstereo._core.lazy import installed
from worldstereo.inputs import cloud, images, panorama, posed, rgbd, scanner, unposed, video
from worldstereo.inputs.registry import CLOUDS, GROUP, PHOTOS, POSES, Reader, readers, register

log = logging.getLogger(__name__)


@cache
def load() -> None:
    """Registers all readers, once; a package that fails to load leaves the others alone."""
    _register_own()
    for entry in installed(GROUP):
        try:
            found = entry.load()
            reader = found if isinstance(found, Reader) else found()
            if reader.name not in {r.name for r in readers()}:
                register(reader)
        except Exception:
            log.exception("reader %s", entry.name)


def _register_own() -> None:
    # ---- captures with poses -------------------------------------------------------------------
    for name, title, find, read, rank in (
        ("frames", "RGB-D: frames.json", rgbd.find_frames, rgbd.read_frames, 10),
        ("transforms", "nerfstudio, instant-ngp and Blender: transforms.json",
         posed.find_transforms, posed.read_transforms, 12),
        ("colmap", "COLMAP: text and binary models", posed.find_colmap, posed.read_colmap, 14),
        ("cameras-json", "3D Gaussian splatting: cameras.json",
         posed.find_cameras_json, posed.read_cameras_json, 16),
        ("camera-path", "A photo with a camera path: camera.json",
         posed.find_examples, posed.read_example, 18),
        ("polycam", "Polycam raw data: keyframes/", scanner.find_polycam, scanner.read_polycam, 20),
        ("arkit", "3D Scanner App: frame_00000.json", scanner.find_arkit, scanner.read_arkit, 22),
        ("record3d", "Record3D: metadata.json and rgb/",
         scanner.find_record3d, scanner.read_record3d, 24),
        ("arkitscenes", "ARKitScenes: .traj and .pincam",
         scanner.find_arkitscenes, scanner.read_arkitscenes, 26),
        ("stray", "Stray Scanner: odometry.csv", scanner.find_stray, scanner.read_stray, 28),
        ("projections", "Projection matrices: NAME_P.txt",
         posed.find_projections, posed.read_projections, 30),
        ("rgbd-text", "RGB-D: ScanNet, 7-Scenes, TUM, Replica, Open3D logs",
         rgbd.find_text, rgbd.read_text, 32),
    ):  # fmt: skip
        register(Reader(name, title, find=find, read_bundle=read, rank=rank, group=POSES))
    # ---- meshes and clouds ---------------------------------------------------------------------
    for name, title, suffixes, sniff in cloud.KINDS:
        register(Reader(name, title, suffixes, sniff, cloud.read_geometry, rank=60, poses=False,
                        group=CLOUDS))  # fmt: skip
    # ---- photos --------------------------------------------------------------------------------
    register(Reader("photo", "One photo, or a panorama (equirectangular)", images.SUFFIXES,
                    images.is_picture, panorama.read_picture, rank=70, poses=False,
                    group=PHOTOS))  # fmt: skip
    register(Reader("unposed", "Photos or panoramas without poses", find=unposed.find_photos,
                    read_bundle=unposed.read_bundle, rank=72, poses=False,
                    group=PHOTOS))  # fmt: skip
    register(Reader("video", "A video", video.SUFFIXES, unposed.is_film, unposed.read_video,
                    unposed.find_video, unposed.read_film, rank=74, poses=False,
                    group=PHOTOS))  # fmt: skip
