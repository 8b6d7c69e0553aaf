"""The inspected pixel as one drawing: the picture, its references, and lines between the matches.

SVG, so that lines stay sharp at any size and carry their own titles.
"""

from collections.abc import Sequence

from worldstereo.scene import View

from ..inspector import Inspection, pixels_of
from ..palette import REFUSED, STEREO, hex_of
from . import html
from .catalogue import tr

WIDTH, GAP, COLUMNS = 680.0, 10.0, 3
WARM, BAD = hex_of(STEREO), hex_of(REFUSED)
DRAWN = 6  # references in the drawing; the bar plot has all


def matches_svg(found: Inspection, views: Sequence[View], thumbnails: html.Thumbnails) -> str:
    """The inspected picture on top, its references below, a line for every match."""
    camera = found.target.camera
    top = WIDTH * camera.height / camera.width
    cross = (found.pixel[0] / camera.width * WIDTH, found.pixel[1] / camera.height * top)
    shown = [match for match in found.matches if match.inside][:DRAWN]
    side = (WIDTH - GAP * (COLUMNS - 1)) / COLUMNS
    y, bottom = top + 14.0, top
    references = []
    for row in range(0, len(shown), COLUMNS):
        tallest = 0.0
        for column, match in enumerate(shown[row : row + COLUMNS]):
            view = views[match.view]
            height = side * view.height / view.width
            x = column * (side + GAP)
            references.append(
                {
                    "view": match.view,
                    "image": thumbnails(view),
                    "x": x,
                    "y": y,
                    "width": side,
                    "height": height,
                    "start": cross,
                    "at": (
                        x + match.pixel[0] / view.width * side,
                        y + match.pixel[1] / view.height * height,
                    ),
                    "weight": match.weight,
                    "refused": match.refused,
                    "reason": match.reason,
                    "word": tr("refused") if match.refused else f"{100 * match.weight:.0f} %",
                    "color": BAD if match.refused else WARM,
                }
            )
            tallest = max(tallest, height)
        bottom = y + tallest
        y = bottom + GAP
    return html.render(
        "matches.svg",
        "drawing",
        width=WIDTH,
        bottom=bottom,
        top=top,
        warm=WARM,
        query=html.picture(pixels_of(found.target.color_u8), 960),
        view=found.target.view,
        px=found.pixel[0] / camera.width,
        py=found.pixel[1] / camera.height,
        references=references,
        cross=cross,
    )
