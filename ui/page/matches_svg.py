"""The inspected pixel as one drawing: the picture, its references, and lines between the matches.

SVG, so that lines stay sharp at any size and carry their own titles.
"""

from collections.abc import Sequence

from worldstereo.scene import View

from ..inspector import Inspection, Match, pixels_of
from ..palette import REFUSED, STEREO, hex_of
from . import html as piece

WIDTH, GAP, COLUMNS = 680.0, 10.0, 3
WARM, BAD = hex_of(STEREO), hex_of(REFUSED)
DRAWN = 6  # references in the drawing; the bar plot has all


def matches_svg(found: Inspection, views: Sequence[View], thumbnails: piece.Thumbnails) -> str:
    """The inspected picture on top, its references below, a line for every match."""
    camera = found.target.camera
    top = WIDTH * camera.height / camera.width
    cross = (found.pixel[0] / camera.width * WIDTH, found.pixel[1] / camera.height * top)
    shown = [match for match in found.matches if match.inside][:DRAWN]
    side = (WIDTH - GAP * (COLUMNS - 1)) / COLUMNS
    y, bottom = top + 14.0, top
    pictures, lines = [], []
    for row in range(0, len(shown), COLUMNS):
        tallest = 0.0
        for column, match in enumerate(shown[row : row + COLUMNS]):
            view = views[match.view]
            height = side * view.height / view.width
            x = column * (side + GAP)
            at = (x + match.pixel[0] / view.width * side, y + match.pixel[1] / view.height * height)
            pictures.append(_reference(match, view, thumbnails, (x, y, side, height), at))
            lines.append(_line(match, cross, at))
            tallest = max(tallest, height)
        bottom = y + tallest
        y = bottom + GAP
    query = piece.picture(pixels_of(found.target.color8), 960)
    marks = piece.attributes(
        id="pixels",
        class_="pixels",
        tabindex="0",
        role="button",
        aria_label="Picture under inspection: click a pixel, or move with the arrow keys",
        data_send="pixel",
        data_view=found.target.view,
        data_px=f"{found.pixel[0] / camera.width:.5f}",
        data_py=f"{found.pixel[1] / camera.height:.5f}",
    )
    return (
        f'<svg class="links" viewBox="0 0 {WIDTH:.0f} {bottom:.1f}" xmlns="http://www.w3.org/2000/svg">'
        f"<defs><radialGradient id='glow'><stop offset='0' stop-color='{WARM}' stop-opacity='1'/>"
        f"<stop offset='.45' stop-color='{WARM}' stop-opacity='.55'/>"
        f"<stop offset='1' stop-color='{WARM}' stop-opacity='0'/></radialGradient></defs>"
        f'<image href="{query}" width="{WIDTH:.0f}" height="{top:.1f}"{marks}/>'
        + "".join(pictures)
        + "".join(lines)
        + _cross(*cross)
        + "</svg>"
    )


def _reference(
    match: Match,
    view: View,
    thumbnails: piece.Thumbnails,
    box: tuple[float, float, float, float],
    at: tuple[float, float],
) -> str:
    """One reference, dimmed, with a glow where its attention lies."""
    x, y, width, height = box
    refused = match.refused
    shade = 0.62 if refused else 0.45
    radius = width * (0.1 + 0.22 * match.weight)
    glow = (
        ""
        if refused
        else f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:.1f}" fill="url(#glow)" '
        f'opacity="{0.25 + 0.75 * match.weight**0.5:.2f}"/>'
    )
    word = "refused" if refused else f"{100 * match.weight:.0f} %"
    return (
        f'<image href="{thumbnails(view)}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" preserveAspectRatio="none"/>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="#000" opacity="{shade}" pointer-events="none"/>'
        f'<g pointer-events="none">{glow}'
        f'<text x="{x + 8:.1f}" y="{y + height - 9:.1f}">view {match.view + 1}</text>'
        f'<text x="{x + width - 8:.1f}" y="{y + height - 9:.1f}" text-anchor="end">{word}</text>'
        "</g>"
    )


def _line(match: Match, a: tuple[float, float], b: tuple[float, float]) -> str:
    refused = match.refused
    color = BAD if refused else WARM
    width = 1.5 if refused else 2 + 4 * match.weight
    dash = ' stroke-dasharray="6 5"' if refused else ""
    said = f"{100 * match.weight:.0f} %" if not refused else match.reason
    title = f"view {match.view + 1}: {said}"
    kind = "refused" if refused else "accepted"
    return (
        f'<line class="match {kind}" x1="{a[0]:.1f}" y1="{a[1]:.1f}" '
        f'x2="{b[0]:.1f}" y2="{b[1]:.1f}" stroke="{color}" stroke-width="{width:.1f}"{dash} '
        f'stroke-linecap="round" pointer-events="none"><title>{piece.esc(title)}</title></line>'
        f'<circle cx="{b[0]:.1f}" cy="{b[1]:.1f}" r="5" fill="{color}" stroke="#fff" '
        f'stroke-width="1.5" pointer-events="none"/>'
    )


def _cross(x: float, y: float) -> str:
    lines = "".join(
        f'<path d="M{x - 16:.1f} {y:.1f}h11m10 0h11M{x:.1f} {y - 16:.1f}v11m0 10v11" '
        f'stroke="{color}" stroke-width="{width}" fill="none"/>'
        for color, width in (("#000", 5), ("#fff", 2.5))
    )
    return f'<g pointer-events="none">{lines}</g>'
