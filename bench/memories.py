"""What the memories decide, measured on real captures: `python -m bench.memories --root DATA`.

Localisation of views that were not remembered, from their pictures alone; agreement of warp clips
and of frames of another world; coverage against views that were left out; gain by adding photos;
cost and size of the keypoint level. Truth is the capture's own poses, carried into the registered
world (`--given` measures against the poses as given, without registration).
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldstereo import Cameras, Capture, Trajectory, View, WarpGenerator, World, read
from worldstereo.guide import Guide, splat_cloud
from worldstereo.memory.localize import Localizer
from worldstereo.memory.stereo.agreement import Witnesses, agreement
from worldstereo.memory.stereo.dense import ViewIndex, synthesize
from worldstereo.memory.stereo.keypoints import KeypointMemory
from worldstereo.memory.stereo.references import references
from worldstereo.scene import Origin
from worldstereo.world import add, explore, start, unknown

KEPT = {
    "livingroom1": 9,
    "apc-shelf": 3,
    "tum-rpy": 8,
    "tum-cabinet": 8,
    "holo-office": 5,
    "workshop": 8,
    "icl-nuim-5": 2,
}
"""Every so many views of a capture are remembered."""
CLEARLY = 0.15
"""How much deeper than a kept view's surface a point lies that is clearly not on it: two views'
depths of one floor differ by up to a tenth where poses or a sensor's far range are poor."""
WRONG = (5.0, 0.25)
"""Degrees and metres beyond which a found place is a wrong one."""


class Measured:
    """One capture: a world of its kept views, the others held out."""

    def __init__(self, name: str, folder: Path, given: bool) -> None:
        capture = read(folder)
        step = KEPT[name]
        self.name, self.views = name, capture.views
        self.kept = list(range(0, len(self.views), step))
        self.out = [i for i in range(len(self.views)) if i not in self.kept]
        kept = tuple(self.views[i] for i in self.kept)
        self.world = World(WarpGenerator())
        start(self.world, Capture(name, "rgbd", kept, up=capture.up), register=not given)

    def truth(self, i: int) -> np.ndarray:
        camera = self.views[i].given
        registration = self.world.registration
        return (camera if registration is None else registration.correct(camera)).c2w.numpy()


def localisation(m: Measured) -> dict[str, float | int]:
    """Photos found, errors, wrong places that are not shown as doubtful, seconds a photo."""
    scene = m.world.scene
    began = time.process_time()
    localizer = Localizer.of(scene.views, scene.unit)
    build = (time.process_time() - began) / len(scene.views)
    degrees, metres, doubtful, hidden, seconds = [], [], 0, 0, []
    for i in m.out:
        view = m.views[i]
        began = time.process_time()
        place = localizer.find(view.color_u8, view.given.K)
        seconds.append(time.process_time() - began)
        if place.camera is None:
            continue
        truth, found = m.truth(i), place.camera.c2w.numpy()
        turn = np.trace(truth[:3, :3].T @ found[:3, :3])
        degrees.append(float(np.degrees(np.arccos(np.clip((turn - 1) / 2, -1, 1)))))
        metres.append(float(np.linalg.norm(truth[:3, 3] - found[:3, 3])))
        doubtful += place.doubtful
        wrong = degrees[-1] > WRONG[0] or metres[-1] > WRONG[1]
        hidden += wrong and not place.doubtful
    return {
        "remembered": len(m.kept),
        "entries": len(localizer.table),
        "photos": len(m.out),
        "found": len(degrees),
        "doubtful": doubtful,
        "wrong, not doubtful": hidden,
        "degrees": float(np.median(degrees)) if degrees else float("nan"),
        "degrees, worst": max(degrees, default=float("nan")),
        "metres": float(np.median(metres)) if metres else float("nan"),
        "metres, worst": max(metres, default=float("nan")),
        "CPU s a photo": float(np.median(seconds)),
        "CPU s a view at entry": build,
    }


def crowded(m: Measured, root: Path, entries: int, photos: int = 12) -> dict[str, float | int]:
    """Photos found among so many entries: the kept views', and those of the other captures, as
    they are and mirrored, far away."""
    views, unit = list(m.world.scene.views), m.world.scene.unit
    memory = KeypointMemory(entries)
    for number, view in enumerate(views):
        memory.observe(view, number, views)
    others = [name for name in KEPT if name != m.name]
    for place, (name, mirrored) in enumerate((n, f) for f in (False, True) for n in others):
        aside = torch.eye(4)
        aside[0, 3] = 1000.0 * (place + 1) * unit
        for view in read(root / "rgbd" / name).views:
            if memory.size >= 0.99 * entries:
                break
            camera, K = view.cameras, view.cameras.K.clone()
            if mirrored:
                K[0, 2] = camera.width - K[0, 2]
                pixels = ("color_u8", "depth", "confidence_u8", "kind")
                view = replace(view, **{p: getattr(view, p).flip(-1).contiguous() for p in pixels})
            moved = Cameras(K, aside @ camera.c2w, camera.width, camera.height)
            views.append(replace(view, cameras=moved))
            memory.observe(views[-1], len(views) - 1, views)
    localizer, found, right, cpu, wall = Localizer(memory.table(views, unit)), 0, 0, [], []
    for i in m.out[:: max(1, len(m.out) // photos)][:photos]:
        began, clock = time.process_time(), time.monotonic()
        place = localizer.find(m.views[i].color_u8, m.views[i].given.K)
        cpu.append(time.process_time() - began)
        wall.append(time.monotonic() - clock)
        found += place.camera is not None
        if place.camera is not None:
            miss = place.camera.c2w.numpy()[:3, 3] - m.truth(i)[:3, 3]
            right += float(np.linalg.norm(miss)) <= WRONG[1]
    return {
        "entries": len(localizer.table),
        "photos": len(cpu),
        "found": found,
        "right": right,
        "s a photo": float(np.median(wall)),
        "CPU s a photo": float(np.median(cpu)),
    }


MOVES: dict[str, tuple[str, dict[str, Any]]] = {
    "to the side": ("truck", {"amount": 0.5}),
    "orbit": ("orbit", {"value": 20.0}),
}
"""Clips whose agreement is measured: a preset of `Trajectory` and how far it goes."""


def agreements(m: Measured, other: Measured | None, frames: int = 5) -> dict[str, float]:
    """Agreement of warp clips, and of pictures of another capture at the same cameras."""
    out: dict[str, float] = {}
    for name, (preset, far) in MOVES.items():
        scene = m.world.scene
        camera = scene.views[len(scene.views) // 2].cameras
        path = Trajectory.preset(preset, camera, distance=2.0, frames=frames, up=scene.up, **far)
        began = time.process_time()
        clip = explore(m.world, path)
        whole = time.process_time() - began
        m.world.undo()
        out[name] = -1.0 if clip.agreement is None else clip.agreement
        out[f"{name}: drift px"] = clip.drift_px
        memory, views = m.world._keypoints, m.world.scene.views
        witnesses = Witnesses(views)
        expected = answered = 0
        seconds = 0.0
        for t in clip.agreement_frames:
            shell = View.of(clip.color[t], torch.zeros_like(clip.depth[t]), path.cameras[t], step=1)
            hidden = clip.origin[t] == int(Origin.CAMERA_FIXED)
            began = time.process_time()
            agreement(
                memory,
                clip.color[t],
                clip.depth[t],
                shell,
                views,
                hidden=hidden,
                witnesses=witnesses,
            )
            seconds += time.process_time() - began
            if other is None:
                continue
            view = other.views[(3 * t) % len(other.views)]
            color = torch.nn.functional.interpolate(view.color[None], clip.color.shape[-2:])[0]
            said = agreement(
                memory, color, clip.depth[t], shell, views, hidden=hidden, witnesses=witnesses
            )
            expected, answered = expected + said.expected, answered + said.answered
        if other is not None:
            out[f"{name}: another world"] = answered / max(1, expected)
        out[f"{name}: CPU s a frame"] = seconds / max(1, len(clip.agreement_frames))
        out[f"{name}: share of the clip's CPU time"] = seconds / whole
    return out


def known_areas(m: Measured) -> dict[str, float]:
    """Is what `unknown` names in held-out cameras really unseen by every kept view, and all of it?

    Truth: the held-out view's own depth, projected into the kept views. A point is seen where one
    of them measured its surface, unseen where it lies outside or clearly behind (`CLEARLY`) what
    each of them measured. Left out, because the truth is not known there: what is fixed to the
    camera, points of which a kept view has no depth, points within two pixels of a kept
    view's depth edge or so little behind its surface that it may be the same, and points that a
    kept view looks through and none confirms (what moves, and depth that is wrong). `strict`
    counts the latter three as seen or unseen by the nearest pixel alone; `5 %` calls unseen what
    lies more than 5 % behind.
    """
    import cv2

    scene = m.world.scene
    counts, close, strict = np.zeros((3, 3), int)
    raws = [m.views[k].depth[0].numpy() for k in m.kept]
    around = np.ones((5, 5), np.uint8)
    farthest = [cv2.dilate(raw, around) for raw in raws]
    nearest = [cv2.erode(np.where(raw > 0, raw, np.inf).astype(np.float32), around) for raw in raws]
    for i in m.out[:: max(1, len(m.out) // 12)]:
        view = m.views[i]
        c2w = torch.from_numpy(m.truth(i)).to(view.given.c2w)
        camera = type(view.given)(view.given.K, c2w, view.width, view.height)
        mask = unknown(scene, camera)[0]
        sure = view.depth[0] > 0
        if scene.camera_fixed is not None and scene.camera_fixed[0].shape == sure.shape:
            sure &= ~scene.camera_fixed[0]
        pixels = camera.pixel_grid().reshape(view.height, view.width, 2)[sure]
        points = camera.unproject(pixels, view.depth[0][sure])
        confirmed, through, front, unclear, near_by, open_ = np.zeros((6, len(points)), bool)
        for k, kept in enumerate(scene.views):
            uv, z = (x.numpy() for x in kept.cameras.project(points))
            inside = (z > 0) & (uv >= 0).all(1) & (uv < [kept.width, kept.height]).all(1)
            u, v = np.where(inside[:, None], uv, 0).astype(int).T
            shown, far, near = raws[k][v, u], farthest[k][v, u], nearest[k][v, u]
            known = inside & (shown > 0)
            open_ |= inside & (shown == 0)
            front |= known & (z < shown * 1.05)
            confirmed |= known & (np.abs(z - shown) < 0.05 * shown)
            through |= known & (z < near * 0.95)
            behind = known & (z > near * 0.95)
            near_by |= behind & (z < far * 1.05)
            unclear |= behind & (z < far * (1 + CLEARLY))
        said = mask[sure].numpy()
        for row, seen, judged in (
            (counts, confirmed, confirmed | ~(through | unclear | open_)),
            (close, confirmed, confirmed | ~(through | near_by | open_)),
            (strict, front, front | ~open_),
        ):
            truth = ~seen & judged
            row += [(said & judged).sum(), truth.sum(), (said & truth).sum()]
    out = {}
    for name, (named, unseen, both) in (("", counts), ("5 % ", close), ("strict ", strict)):
        out[f"{name}precision"] = float(both / max(1, named))
        out[f"{name}recall"] = float(both / max(1, unseen))
    return out


def reference_choice(m: Measured, targets: int = 8) -> dict[str, float]:
    """Held-out PSNR with the views that the keypoint level's votes choose, and with those of the
    geometric index; same number of views, same poses. Views that nobody voted for come after the
    votes, as the index orders them."""
    scene = m.world.scene
    index, table = ViewIndex(scene.views), m.world._keypoints.table(scene.views, scene.unit)
    psnr: dict[str, list[float]] = {"votes": [], "index": []}
    seconds, other = {"votes": 0.0, "index": 0.0}, 0
    for i in m.out[:: max(1, len(m.out) // targets)]:
        view = m.views[i]
        c2w = torch.from_numpy(m.truth(i)).to(view.given.c2w)
        camera = type(view.given)(view.given.K, c2w, view.width, view.height)
        splat = splat_cloud(scene, camera)
        began = time.process_time()
        plain = index.choose(camera, splat)
        seconds["index"] += time.process_time() - began
        began = time.process_time()
        voted = [r.view for r in references(table, camera, scene.views, depth=splat.depth)]
        voted = sorted([*voted, *(k for k in plain if k not in voted)][: len(plain)])
        seconds["votes"] += time.process_time() - began
        other += list(plain) != voted
        for name, chosen in (("index", plain), ("votes", voted)):
            if name == "votes" and list(plain) == voted:
                psnr[name].append(psnr["index"][-1])
                continue
            remembered = [scene.views[k] for k in chosen]
            made = synthesize(
                camera, remembered, splat=splat, camera_fixed=scene.camera_fixed, unit=scene.unit
            )
            psnr[name].append(-10 * float(((made.color - view.color) ** 2).mean().log10()))
    n = len(psnr["index"])
    return {
        "targets": n,
        "chosen otherwise": other,
        "dB index": float(np.mean(psnr["index"])),
        "dB votes": float(np.mean(psnr["votes"])),
        "ms index": 1000 * seconds["index"] / n,
        "ms votes": 1000 * seconds["votes"] / n,
    }


def adding(m: Measured, photos: int = 12) -> dict[str, float | int]:
    """Held-out PSNR at the place found from each target, before and after adding photos."""
    spread = np.linspace(0, len(m.out) - 1, photos + 2).astype(int)[1:-1]
    chosen = [m.out[k] for k in spread]
    targets = [i for i in m.out if i not in chosen][:: max(1, (len(m.out) - photos) // 8)]
    localizer = m.world.localizer()
    places = [localizer.find(m.views[i].color_u8, m.views[i].given.K) for i in targets]

    def psnr() -> float:
        values = []
        for i, place in zip(targets, places, strict=True):
            if place.camera is None:
                continue
            path = Trajectory(type(place.camera).stack([place.camera]), "one", 24.0)
            color = Guide(m.world.scene, path)[0].color
            values.append(-10 * float(((color - m.views[i].color) ** 2).mean().log10()))
        return float(np.mean(values))

    before = psnr()
    began = time.process_time()
    report = add(m.world, Capture("photos", "pictures", tuple(m.views[i] for i in chosen)))
    seconds = time.process_time() - began
    after = psnr()
    m.world.undo()
    return {
        "added": len(report.added),
        "dB before": before,
        "dB after": after,
        "gain dB": after - before,
        "CPU s a photo": seconds / photos,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=list(KEPT))
    parser.add_argument(
        "--parts", nargs="*", default=["localisation", "agreement", "coverage", "references", "add"]
    )
    parser.add_argument("--crowd", type=int, default=100_000, help="entries of the part `crowd`")
    parser.add_argument("--given", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results, last = {}, None
    for name in options.sets:
        m = Measured(name, options.root / "rgbd" / name, options.given)
        row = results[name] = {}
        size = {k: v.nbytes for k, v in m.world.keypoints().items()}
        entries = max(1, len(m.world.keypoints()["memory.points"]))
        row["size"] = {"bytes an entry": sum(size.values()) / entries}
        if "localisation" in options.parts:
            row["localisation"] = localisation(m)
        if "crowd" in options.parts:
            row["crowd"] = crowded(m, options.root, options.crowd)
        if "agreement" in options.parts:
            row["agreement"] = agreements(m, last)
        if "coverage" in options.parts:
            row["coverage"] = known_areas(m)
        if "references" in options.parts:
            row["references"] = reference_choice(m)
        if "add" in options.parts and len(m.out) > 20:
            row["add"] = adding(m)
        for part, values in row.items():
            text = ", ".join(
                f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
            )
            print(f"{name:12s} {part:13s} {text}", flush=True)
        last = m
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
