"""How much the angle between two rays to one surface counts, in radians."""

# How the angle between two rays counts. A weight must not change faster than cameras move, or
# neighbouring views of a path differ: about exp(-9 angle), with a tail that never vanishes. Where
# depth is a guess, its error shifts what is seen in proportion to the angle: the nearest counts.
WIDE, SHARP = 0.65, 0.03
