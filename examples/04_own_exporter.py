"""An exporter of one's own: the cloud as CSV. After `register` the page and `export` offer it."""

import io

import numpy as np

from worldstereo import Scene
from worldstereo.exports import Estimate, Exporter, register


def write_csv(scene: Scene, *, generated: bool = True) -> bytes:
    """One line a point: x, y, z, red, green, blue, and 1 where a generator made it."""
    cloud = scene.cloud if generated else scene.cloud.rows(scene.cloud.step == 0)
    columns = [cloud.points, cloud.colors, (cloud.step > 0)[:, None].float()]
    table = np.hstack([column.numpy() for column in columns])
    text = io.StringIO()
    np.savetxt(text, table, "%.6g", ",", header="x,y,z,red,green,blue,invented", comments="")
    return text.getvalue().encode()


def estimate(scene: Scene) -> Estimate:
    return Estimate(bytes=60 * len(scene.cloud), seconds=len(scene.cloud) / 2e5)


register(
    Exporter(
        name="csv",
        label="Points (CSV)",
        suffix=".csv",
        describes="Points as a table; spreadsheets.",
        writer=write_csv,
        needs=("points",),
        group="use",
        estimate=estimate,
    )
)
