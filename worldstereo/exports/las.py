"""Points as LAS 1.2, record format 2, or LAZ. +Z up, metres where known.

Coordinates are whole numbers times a scale: the box's corner is the offset, and the scale leaves
two thousand million steps along the longest side, rounded up to a power of ten.
"""

import datetime
import io
import math
from typing import Any

import numpy as np

from worldstereo.errors import ExportError
from worldstereo.exports.archive import array, bytes_of, chosen_points
from worldstereo.exports.conventions import conventions, to_file
from worldstereo.scene import Scene


def write_las(
    scene: Scene,
    *,
    generated: bool = True,
    colors: bool = True,
    max_points: int | None = None,
    compress: bool = False,
) -> bytes:
    """Extra bytes `confidence` and `invented` (1: a generator made it).

    Raises:
        ExportError: no points, or laspy is missing.
    """
    try:
        import laspy
    except ImportError:
        raise ExportError("LAS needs the package laspy: pip install 'laspy[lazrs]'.") from None
    cloud, rows = scene.cloud, chosen_points(scene.cloud, generated, max_points)
    points = array(cloud.points)[rows].astype(np.float64) @ to_file(scene, (0, 0, 1)).T
    low, high = points.min(axis=0), points.max(axis=0)
    side = max(float((high - low).max()), float(np.abs(low).max()) * 1e-9, 1e-12)
    header: Any = laspy.LasHeader(version="1.2", point_format=2)
    header.scales = np.full(3, 10.0 ** math.ceil(math.log10(side / 2e9)))
    header.offsets = low
    header.creation_date = datetime.date(1980, 1, 1)  # no clock: files repeat bit for bit
    header.system_identifier = "WorldStereo"
    header.generating_software = conventions(scene, "las")["written_by"][:32]
    header.add_extra_dims(
        [laspy.ExtraBytesParams("confidence", "f4"), laspy.ExtraBytesParams("invented", "u1")]
    )
    file: Any = laspy.LasData(header)
    file.x, file.y, file.z = points.T
    if colors:
        for name, column in zip(
            ("red", "green", "blue"), bytes_of(array(cloud.colors)[rows]).T, strict=True
        ):
            setattr(file, name, column.astype(np.uint16) * 257)
    file.confidence = array(cloud.confidence)[rows]
    file.invented = (array(cloud.step)[rows] > 0).astype(np.uint8)
    stream = io.BytesIO()
    file.write(stream, do_compress=compress)
    return stream.getvalue()


def write_laz(
    scene: Scene, *, generated: bool = True, colors: bool = True, max_points: int | None = None
) -> bytes:
    """As `write_las`, compressed."""
    return write_las(
        scene, generated=generated, colors=colors, max_points=max_points, compress=True
    )
