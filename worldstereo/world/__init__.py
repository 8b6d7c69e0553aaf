"""A world: two memories that grow by transactional steps; `start` fills, `explore` extends it."""

from worldstereo._core.resident import resident_bytes, trim
from worldstereo.world._edits import delete_points, moved, set_registration, set_scale, set_up
from worldstereo.world._explore import default_view, explore, pivot_distance, sky_of, start
from worldstereo.world._original import Original, PackedDepth
from worldstereo.world._remember import remember_entries, remember_view
from worldstereo.world._world import Draft, StepRecord, World

__all__ = [
    "Draft",
    "Original",
    "PackedDepth",
    "StepRecord",
    "World",
    "default_view",
    "delete_points",
    "explore",
    "moved",
    "pivot_distance",
    "resident_bytes",
    "remember_entries",
    "remember_view",
    "set_registration",
    "set_scale",
    "set_up",
    "sky_of",
    "start",
    "trim",
]
