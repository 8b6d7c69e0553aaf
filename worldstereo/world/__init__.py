"""A world: two memories that grow by transactional steps; `start` fills, `explore` extends it."""

from worldstereo._core.resident import resident_bytes, trim
from worldstereo.world._add import AddedPhoto, AddReport, add, locate
from worldstereo.world._complete import complete, completion_budget
from worldstereo.world._coverage import (
    Coverage,
    Known,
    NextView,
    coverage,
    front_at,
    next_best_views,
    propose_path,
    reach_along,
    unknown,
    unknown_along,
)
from worldstereo.world._edits import delete_points, moved, set_registration, set_scale, set_up
from worldstereo.world._explore import default_view, explore, pivot_distance, sky_of, start
from worldstereo.world._invent import leave_empty, region_of
from worldstereo.world._original import Original, PackedDepth
from worldstereo.world._remember import remember_entries, remember_view
from worldstereo.world._takes import compare, discard, keep, takes
from worldstereo.world._world import Draft, StepRecord, World

__all__ = [
    "AddReport",
    "AddedPhoto",
    "Coverage",
    "Draft",
    "Known",
    "NextView",
    "Original",
    "PackedDepth",
    "StepRecord",
    "World",
    "add",
    "compare",
    "complete",
    "completion_budget",
    "coverage",
    "default_view",
    "delete_points",
    "discard",
    "explore",
    "front_at",
    "keep",
    "leave_empty",
    "locate",
    "moved",
    "next_best_views",
    "pivot_distance",
    "propose_path",
    "reach_along",
    "region_of",
    "remember_entries",
    "remember_view",
    "resident_bytes",
    "set_registration",
    "set_scale",
    "set_up",
    "sky_of",
    "start",
    "takes",
    "trim",
    "unknown",
    "unknown_along",
]
