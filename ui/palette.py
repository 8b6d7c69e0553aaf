"""The colours that mean something, once: where a pixel comes from, and the one accent.

The stylesheet, the inspector's pictures, the matches and the lines in the viewport read them here.
Origins are told apart by colour-blind eyes (Okabe & Ito 2008).
"""

RGB = tuple[int, int, int]

GLOBAL: RGB = (86, 180, 233)  # only the cloud knows it
STEREO: RGB = (230, 159, 0)  # remembered pixels confirm it
INVENTED: RGB = (204, 121, 167)  # generated where no memory knows anything
REFUSED: RGB = (213, 94, 0)  # a match that does not hold
CAMERA_FIXED: RGB = (150, 157, 168)  # fixed to the camera
ACCENT: RGB = (59, 130, 246)  # the button, the selected tab, the planned path; nothing else
ACCENT_LIGHT: RGB = (110, 168, 255)
LINE: RGB = (235, 238, 241)  # frusta of the input views
STAGE: RGB = (12, 14, 17)  # behind the place, in both themes

ORIGINS = {"global": GLOBAL, "stereo": STEREO, "invented": INVENTED, "refused": REFUSED}


def hex_of(color: RGB) -> str:
    """As CSS writes it: `#56b4e9`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def css_variables() -> str:
    """`--global: #56b4e9; ...`, for the page's stylesheet."""
    named = ORIGINS | {"accent": ACCENT, "stage": STAGE}
    return "; ".join(f"--{name}: {hex_of(color)}" for name, color in named.items())
