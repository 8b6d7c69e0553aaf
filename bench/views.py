"""Held-out views predicted from remembered ones: every figure, rung and switch of synthesis.

    python -m bench.views [--root FOLDER] [--sets a,b] [--quick] [--brief] [--rungs]
                          [--thin 3,4,5,8] [--sheets FOLDER]

FOLDER holds captures as the readers take them (default: rgbd/* and photos-posed/* below the folder
named by WORLDSTEREO_DATA). Without `--rungs` only the full pipeline, baselines, memory switches,
consistency, growth and times are measured; `--quick` takes two targets of each set; `--brief`
stops after the given and the found pose and the agreement of neighbouring views; `--thin` keeps so
many given views alone and predicts a few targets from them, at the found pose.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.harness import Context, Row
from bench.views_poses import FoundPoses, aligned, nearest_warped, scored, splatted
from bench.views_sets import (
    Job,
    arrays_of_views,
    depth_errors,
    image_of,
    jobs,
    load,
    mean_of,
    picture,
    psnr,
    scores,
    seen_mask,
    sparsification,
    splat_and_nearest,
)
from bench.views_sheet import sheet
from worldstereo.cameras import Cameras
from worldstereo.memory.stereo import dense as synthesis
from worldstereo.memory.stereo.dense import SynthesisOptions
from worldstereo.render import RenderResult, render_points
from worldstereo.scene import Origin, PointCloud, View
from worldstereo.views import intake
from worldstereo.views.fusion import fetch, make_view_arrays, pose_distance, pose_of
from worldstereo.views.intake import IntakeOptions, PreprocessedViews

FEW = 4  # targets that a thinned capture is asked for
WHOLE, ENTIRE = SynthesisOptions(), IntakeOptions()
SETS = (
    "livingroom1", "apc-shelf", "icl-nuim-5", "holo-office", "tum-rpy", "tum-cabinet", "workshop",
)  # fmt: skip
PHOTOS = ("lund-door", "buddha", "plush", "skull", "banana", "caliterra", "berlin")
FLOORS = {  # whole image at the found pose: PSNR, SSIM
    "livingroom1": {"floor": "29.8/.908", "stretch": "30.8/.92"},
    "apc-shelf": {"floor": "19.9/.70", "stretch": "21/.74"},
    "icl-nuim-5": {"floor": "26.1/.90", "stretch": "27/.91"},
    "holo-office": {"floor": "18.4"},
    "tum-rpy": {"floor": "19.0"},
    "tum-cabinet": {"floor": "25.2"},
    "workshop": {"floor": "30.9"},
}
OFF_INTAKE = IntakeOptions(
    camera_fixed=False, clean=False, contradict=False, by_others=False, exposure=False,
    complete=False, stereo=False,
)  # fmt: skip
OFF_SYNTHESIS = SynthesisOptions(
    weighted=False,
    free_space=False,
    exposure=False,
    antialias=False,
    background=False,
    rims=False,
    mean=False,
    planes=False,
    nearest=False,
    slip=0.0,
)
RUNGS: list[tuple[str, dict, dict]] = [
    ("fused depth, plain mean", {}, {}),
    ("weights", {}, {"weighted": True}),
    ("free-space test", {}, {"free_space": True}),
    ("camera-fixed layer", {"camera_fixed": True}, {}),
    ("small gaps, despeckle", {"clean": True}, {}),
    ("registration", {"register": True}, {}),
    ("contradiction", {"contradict": True}, {}),
    ("depth by others", {"by_others": True}, {}),
    ("completion", {"complete": True}, {}),
    ("exposure", {"exposure": True}, {"exposure": True}),
    ("PatchMatch", {"stereo": True}, {}),
    ("edge antialiasing", {}, {"antialias": True}),
    ("background fill", {}, {"background": True}),
    ("rims of holes", {}, {"rims": True}),
    ("mean far inside holes", {}, {"mean": True}),
    ("nearest views first", {}, {"nearest": True}),
    ("depth that moves nothing", {}, {"slip": 1.0}),
]


class Remembered:
    """A job's views after intake, ready to be asked for targets."""

    def __init__(self, job: Job, options: IntakeOptions, register: bool) -> None:
        start, used = time.perf_counter(), time.process_time()
        self.job = job
        self.intake: PreprocessedViews = intake.preprocess_views(
            job.kept, options=options, register=register, points=job.points
        )
        self.seconds = (time.perf_counter() - start) / len(job.kept)
        self.cpu = (time.process_time() - used) / len(job.kept)
        self.views: list[View] = list(self.intake.views)
        self.index = synthesis.ViewIndex(self.views)
        self.cloud: PointCloud | None = None

    def camera(self, target: View):  # noqa: ANN201
        registration = self.intake.registration
        return registration.correct(target.given) if registration else target.given

    def splat(self, target: View) -> RenderResult:
        if self.cloud is None:
            parts = [intake.cloud_from(view, unit=self.intake.unit) for view in self.views]
            self.cloud = PointCloud.of(
                torch.cat([p.points for p in parts]), torch.cat([p.colors for p in parts])
            )
        return render_points(self.cloud.points, self.cloud.colors, self.camera(target), radius=1)

    def __call__(
        self, target: View, options: SynthesisOptions = WHOLE, **switches: object
    ) -> synthesis.Synthesis:
        return self.at(self.camera(target), options, **switches)

    def at(
        self, camera: Cameras, options: SynthesisOptions = WHOLE, **switches: object
    ) -> synthesis.Synthesis:
        chosen = self.index.choose(camera, switches.get("splat"))
        return synthesis.synthesize(
            camera, [self.views[i] for i in chosen], camera_fixed=self.intake.camera_fixed,
            unit=self.intake.unit, options=options, **switches,
        )  # fmt: skip


class Bench:
    """One capture: its jobs, truths and masks."""

    def __init__(
        self, name: str, folder: Path, fixtures: Path | None, quick: bool, keep: int | None = None
    ) -> None:
        self.name, self.rows = name, []
        views, points = load(folder)
        self.jobs = jobs(name, views, fixtures, points=points)
        if keep is not None:  # so many of the given views alone, and a few of the targets
            self.jobs = [
                replace(job, kept=_evenly(job.kept, keep), targets=_evenly(job.targets, FEW))
                for job in self.jobs[:1]
            ]
        if quick:
            self.jobs = [replace(job, targets=job.targets[:2]) for job in self.jobs[:1]]
        self.kept = [arrays_of_views(job.kept) for job in self.jobs]
        self.targets = [
            (k, target, picture(target), self._seen(k, target))
            for k, job in enumerate(self.jobs)
            for target in job.targets
        ]

    def _seen(self, k: int, target: View) -> np.ndarray:
        return seen_mask(self.kept[k], make_view_arrays(target), self.jobs[k].camera_fixed)

    def remember(self, options: IntakeOptions = ENTIRE, register: bool = True):  # noqa: ANN201
        return [Remembered(job, options, register) for job in self.jobs]

    def score(self, label: str, predict, **extra: float) -> dict[str, float]:  # noqa: ANN001
        rows, seconds, cpu = [], [], []
        for k, target, truth, seen in self.targets:
            start, used = time.perf_counter(), time.process_time()
            image = predict(k, target)
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - used)
            rows.append(scores(image, truth, seen))
        row = (
            mean_of(rows)
            | {"s_target": float(np.median(seconds)), "cpu_target": float(np.median(cpu))}
            | extra
        )
        self.rows.append({"set": self.name, "what": label} | row)
        print(f"{self.name:12s} {label:34s} " + _figures(row), flush=True)
        return row


def _evenly(views: Sequence[View], count: int) -> list[View]:
    """At most `count` of some views, evenly, both ends among them."""
    which = np.unique(np.linspace(0, len(views) - 1, min(count, len(views))).astype(int))
    return [views[i] for i in which]


def _figures(row: dict[str, float]) -> str:
    def shown(v: float) -> str:
        return f"{v:.5f}" if abs(v) < 0.05 else f"{v:.3f}" if abs(v) < 5 else f"{v:.2f}"

    return " ".join(f"{k} {shown(v)}" for k, v in row.items())


def baselines(bench: Bench) -> None:
    bench.score(
        "splat, nearest fill", lambda k, t: splat_and_nearest(bench.kept[k], make_view_arrays(t))
    )

    def nearest(k: int, target: View) -> np.ndarray:
        pose = make_view_arrays(target).pose
        best = min(
            range(len(bench.kept[k])), key=lambda i: pose_distance(bench.kept[k][i].pose, pose)
        )
        one = Remembered(replace(bench.jobs[k], kept=[bench.jobs[k].kept[best]]), OFF_INTAKE, False)
        return image_of(one(target, OFF_SYNTHESIS))

    bench.score("nearest view, warped", nearest)


def at_found_pose(bench: Bench, memory: Sequence[Remembered], of: str = "") -> None:
    """Whole pipeline and baselines where each target was really taken, if it was found.

    Twice: where keypoints found it, and where optical flow then aligns it with what is seen there.
    """
    finders = [FoundPoses(m.views, m.intake.unit) for m in memory]
    kept = [arrays_of_views(m.views) for m in memory]
    sensed = any(bool(v.mask.any()) for v in bench.jobs[0].kept)
    rows: dict[str, list[dict[str, float]]] = {}
    found = 0
    for k, target, truth, seen in bench.targets:
        m = memory[k]
        camera, known = finders[k](target, m.camera(target))
        found += known
        for where in ("found", "aligned"):
            if where == "aligned":
                camera = aligned(m.at, camera, truth)
            images = {
                "all rungs": image_of(m.at(camera)),
                "nearest view, warped": nearest_warped(m.views, camera, m.intake.unit),
            }
            if sensed:
                images["splat"] = splatted(kept[k], camera, target)
            for what, image in images.items():
                label = f"{of}{where} pose: {what}"
                rows.setdefault(label, []).append(scored(image, target, seen))
    for label, scores_ in rows.items():
        row = mean_of(scores_) | {"found": float(found), "of": float(len(scores_))}
        bench.rows.append({"set": bench.name, "what": label} | row)
        print(f"{bench.name:12s} {label:34s} " + _figures(row), flush=True)


def thinned(name: str, folder: Path, fixtures: Path | None, counts: Sequence[int]) -> list[dict]:
    """Captures of which only so many given views are kept, against both baselines."""
    rows: list[dict] = []
    for count in counts:
        bench = Bench(name, folder, fixtures, False, keep=count)
        if len(bench.jobs[0].kept) < count:
            break
        at_found_pose(bench, bench.remember(), f"{count} views, ")
        rows += bench.rows
    return rows


def photo_baseline(bench: Bench, memory: Sequence[Remembered]) -> None:
    """For photos without depth: the nearest one, warped with our own completed depth."""

    def nearest(k: int, target: View) -> np.ndarray:
        m = memory[k]
        camera = m.camera(target)
        pose = pose_of(camera, m.intake.unit)
        best = min(m.views, key=lambda v: pose_distance(pose_of(v.cameras, m.intake.unit), pose))
        return image_of(
            synthesis.synthesize(camera, [best], unit=m.intake.unit, options=OFF_SYNTHESIS)
        )

    bench.score("nearest photo, our depth", nearest)


def every_target(bench: Bench, folder: Path, memory: Sequence[Remembered]) -> None:
    """All frames that were not kept, beside the evenly chosen ones of the protocol."""
    rest = jobs(bench.name, load(folder)[0], None, every=True)[0].targets
    rows = []
    for target in rest:
        image, truth = image_of(memory[0](target)), picture(target)
        rows.append(scores(image, truth, bench._seen(0, target)))
    row = mean_of(rows)
    bench.rows.append({"set": bench.name, "what": f"all {len(rest)} targets"} | row)
    print(f"{bench.name:12s} {f'all {len(rest)} targets':34s} " + _figures(row), flush=True)


def full(bench: Bench) -> list[Remembered]:
    """The whole pipeline with its times, memory switches, confidence and honesty of the origin."""
    memory = bench.remember()
    entry = {"s_entry": np.mean([m.seconds for m in memory])}
    entry["cpu_entry"] = np.mean([m.cpu for m in memory])
    bench.score("all rungs", lambda k, t: image_of(memory[k](t)), **entry)
    bench.score(
        "with the cloud's splat", lambda k, t: image_of(memory[k](t, splat=memory[k].splat(t)))
    )
    bench.score(
        "stereo off", lambda k, t: image_of(memory[k](t, splat=memory[k].splat(t), stereo=False))
    )
    bench.score("geometry off", lambda k, t: image_of(memory[k](t, geometry=False)))
    honesty = []
    for k, target, truth, seen in bench.targets:
        result = memory[k](target)
        error = np.abs(image_of(result) - truth).mean(2)
        origin = result.origin[0].numpy()
        honesty.append(
            {
                "invented_though_seen": float(((origin == Origin.INVENTED) & seen).mean()),
                "invented": float((origin == Origin.INVENTED).mean()),
                "wrong_stereo": float(((origin == Origin.STEREO) & (error > 20 / 255)).mean()),
                "sparsification": sparsification(error, result.confidence[0].numpy()),
            }
        )
    row = {k: float(np.mean([h[k] for h in honesty])) for k in honesty[0]}
    bench.rows.append({"set": bench.name, "what": "honesty"} | row)
    print(f"{bench.name:12s} {'honesty':34s} " + _figures(row), flush=True)
    return memory


def hole_depth(bench: Bench, memory: Sequence[Remembered]) -> None:
    """Invented depth against the target's sensor, pooled: smooth fill alone, then with planes."""
    for label, options in (("smooth", SynthesisOptions(planes=False)), ("with planes", WHOLE)):
        parts = [
            depth_errors(memory[k](target, options), target) for k, target, *_ in bench.targets
        ]
        off = np.concatenate(parts)
        if not len(off):
            return
        row = {
            "median": float(np.median(off)),
            "mean": float(off.clip(0, 1).mean()),
            "within_5": float((off < 0.05).mean()),
            "within_20": float((off < 0.2).mean()),
        }
        bench.rows.append({"set": bench.name, "what": f"depth in holes, {label}"} | row)
        print(f"{bench.name:12s} {f'depth in holes, {label}':34s} " + _figures(row), flush=True)


def rungs(bench: Bench) -> None:
    """Every rung on top of those before it, then every one left out of the whole."""
    entered, made, register = OFF_INTAKE, OFF_SYNTHESIS, False
    memory = bench.remember(entered, register)
    for label, preprocess_views, make in RUNGS:
        if preprocess_views:
            register = preprocess_views.get("register", register)
            entered = replace(
                entered, **{k: v for k, v in preprocess_views.items() if k != "register"}
            )
            memory = bench.remember(entered, register)
        made = replace(made, **make)
        entry = float(np.mean([m.seconds for m in memory]))
        bench.score("+ " + label, lambda k, t: image_of(memory[k](t, made)), s_entry=entry)  # noqa: B023
    for label, preprocess_views, make in RUNGS[1:]:
        options = IntakeOptions(**{k: False for k in preprocess_views if k != "register"})
        memory = bench.remember(options, "register" not in preprocess_views)
        made = SynthesisOptions(**{k: type(v)(0) for k, v in make.items()})
        bench.score("- " + label, lambda k, t: image_of(memory[k](t, made)))  # noqa: B023


def consistency(bench: Bench, memory: Sequence[Remembered]) -> None:
    """Consecutive predictions: one fetched at the other's depth against the other."""
    generated, invented, truths = [], [], []
    for (k, a, truth_a, _), (k2, b, truth_b, _) in zip(
        bench.targets, bench.targets[1:], strict=False
    ):
        if k != k2:
            continue
        m = memory[k]
        first, second = m(a), m(b)
        camera_fixed = (
            np.zeros(truth_a.shape[:2], bool)
            if m.intake.camera_fixed is None
            else m.intake.camera_fixed[0].numpy()
        )
        unit = m.intake.unit
        there = View.of(first.color, first.depth, m.camera(a))
        here = make_view_arrays(View.of(second.color, second.depth, m.camera(b)), unit)
        made = (first.origin == Origin.INVENTED)[0].numpy() | (second.origin == Origin.INVENTED)[
            0
        ].numpy()
        for image, other, out in (
            (there, image_of(second), generated),
            (View.of(a.color, first.depth, m.camera(a)), truth_b, truths),
        ):
            color, agreement, _ = fetch(here.depth, here.pose, make_view_arrays(image, unit), 0.02)
            difference = np.abs(color - other).mean(2)
            both = (agreement > 0) & ~camera_fixed
            if (both & ~made).any():
                out.append(float(np.median(difference[both & ~made])))
            if out is generated and (both & made).any():
                invented.append(float(np.median(difference[both & made])))
    row = {
        "generated": float(np.mean(generated)) if generated else float("nan"),
        "invented": float(np.mean(invented)) if invented else float("nan"),
        "truth": float(np.mean(truths)) if truths else float("nan"),
    }
    bench.rows.append({"set": bench.name, "what": "consistency"} | row)
    print(f"{bench.name:12s} {'consistency (median difference)':34s} " + _figures(row), flush=True)


def _seconds(call, rounds: int = 7) -> float:  # noqa: ANN001
    """Median seconds of a call, after one that does not count."""
    call()
    out = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        out.append(time.perf_counter() - start)
    return float(np.median(out))


def wide(bench: Bench, memory: Sequence[Remembered]) -> None:
    """One 832x480 view: the target's camera with a wider picture."""
    k, target, *_ = bench.targets[len(bench.targets) // 2]
    m, camera = memory[k], memory[k].camera(target)
    K = camera.K.clone()
    K[0, 2] += (832 - camera.width) / 2
    K[1, 2] += (480 - camera.height) / 2
    larger = Cameras(K, camera.c2w, 832, 480)
    views = [m.views[i] for i in m.index.choose(larger)]
    seconds = _seconds(
        lambda: synthesis.synthesize(
            larger, views, camera_fixed=m.intake.camera_fixed, unit=m.intake.unit
        )
    )
    row = {"s_832x480": seconds, "views": float(len(views))}
    bench.rows.append({"set": bench.name, "what": "832x480"} | row)
    print(f"{bench.name:12s} {'one 832x480 view':34s} " + _figures(row), flush=True)


def many(bench: Bench, memory: Sequence[Remembered], count: int = 500) -> None:
    """The same views chosen out of `count`, the others copies placed elsewhere: time, bits."""
    k, target, *_ = bench.targets[len(bench.targets) // 2]
    m, camera = memory[k], memory[k].camera(target)
    views = list(m.views)
    for i in range(count - len(views)):
        view = m.views[i % len(m.views)]
        c2w = view.cameras.c2w.clone()
        c2w[:3, 3] += torch.tensor([50.0 + i % 23, 9.0 * (i // 23), 7.0]).to(c2w) * m.intake.unit
        moved = Cameras(view.cameras.K, c2w, view.width, view.height)
        views.append(replace(view, cameras=moved))

    def made(index: synthesis.ViewIndex, among: Sequence[View]) -> synthesis.Synthesis:
        chosen = [among[i] for i in index.choose(camera)]
        return synthesis.synthesize(
            camera, chosen, camera_fixed=m.intake.camera_fixed, unit=m.intake.unit
        )

    all_of_them = synthesis.ViewIndex(views)
    few, lots = made(m.index, m.views), made(all_of_them, views)
    equal = all(torch.equal(a, b) for a, b in zip(few, lots, strict=True))
    row = {
        "ratio": _seconds(lambda: made(all_of_them, views))
        / _seconds(lambda: made(m.index, m.views)),
        "bit_equal": float(equal),
    }  # fmt: skip
    bench.rows.append({"set": bench.name, "what": f"out of {count}"} | row)
    print(f"{bench.name:12s} {f'same views out of {count}':34s} " + _figures(row), flush=True)


def growth(bench: Bench, memory: Sequence[Remembered]) -> None:
    """The path is made, remembered, and made again: how far the second differs in PSNR."""
    changes = []
    for k, job in enumerate(bench.jobs):
        m = memory[k]
        views, before = list(m.views), []
        for t, target in enumerate(job.targets):
            camera = m.camera(target)
            chosen = [views[i] for i in synthesis.choose_views(views, camera)]
            result = synthesis.synthesize(
                camera, chosen, camera_fixed=m.intake.camera_fixed, unit=m.intake.unit
            )
            before.append(psnr(image_of(result), picture(target)))
            views.append(
                intake.generated(
                    result.color,
                    result.depth,
                    result.origin,
                    result.confidence,
                    camera,
                    step=1,
                    frame=t,
                )  # fmt: skip
            )
        for target, was in zip(job.targets, before, strict=True):
            camera = m.camera(target)
            chosen = [views[i] for i in synthesis.choose_views(views, camera)]
            again = synthesis.synthesize(
                camera, chosen, camera_fixed=m.intake.camera_fixed, unit=m.intake.unit
            )
            changes.append(psnr(image_of(again), picture(target)) - was)
    row = {"mean_change": float(np.mean(changes)), "worst_change": float(np.min(changes))}
    bench.rows.append({"set": bench.name, "what": "growth"} | row)
    print(f"{bench.name:12s} {'growth (dB)':34s} " + _figures(row), flush=True)


def measure(
    folders: dict[str, Path], *, fixtures: Path | None, quick: bool, all_rungs: bool,
    sheets: Path | None, brief: bool = False, thin: Sequence[int] = (),
) -> list[dict]:  # fmt: skip
    """Every figure of some captures, printed as it comes and returned as rows."""
    rows: list[dict] = []
    for name, folder in folders.items():
        if thin:
            rows += thinned(name, folder, fixtures, thin)
            continue
        bench = Bench(name, folder, fixtures, quick)
        photos = not any(bool(view.mask.any()) for view in bench.jobs[0].kept)
        if not photos:
            baselines(bench)
        memory = full(bench)
        at_found_pose(bench, memory)
        if brief:
            consistency(bench, memory)
            rows += bench.rows
            continue
        if photos:
            photo_baseline(bench, memory)
        if name == "livingroom1" and not quick:
            every_target(bench, folder, memory)
        consistency(bench, memory)
        hole_depth(bench, memory)
        wide(bench, memory)
        many(bench, memory)
        growth(bench, memory)
        if sheets is not None:
            sheet(bench, memory, sheets)
        if all_rungs and not photos:
            rungs(bench)
        rows += bench.rows
    return rows


def found_folders(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Captures below a folder by name, directly or one folder down."""
    out = {}
    for name in names:
        for candidate in (root / name, *sorted(root.glob(f"*/{name}"))):
            if candidate.is_dir():
                out[name] = candidate
                break
    return out


def views(context: Context) -> list[Row]:
    """Held-out views predicted from remembered ones, every rung; needs WORLDSTEREO_DATA."""
    root = Path(os.environ.get("WORLDSTEREO_DATA", ""))
    if not root.is_dir() or not os.environ.get("WORLDSTEREO_DATA"):
        print("views: skipped, WORLDSTEREO_DATA does not name a folder of captures")
        return []
    names = SETS[:1] if context.quick else (*SETS, *PHOTOS)
    found = measure(
        found_folders(root, names), fixtures=root.parent / "fixtures", quick=context.quick,
        all_rungs=not context.quick, sheets=None,
    )  # fmt: skip
    rows = []
    for figures in found:
        name, what = figures.pop("set"), figures.pop("what")
        cpu, wall = (1e3 * figures.pop(k, 0.0) for k in ("cpu_target", "s_target"))
        targets = FLOORS.get(name, {}) if what == "found pose: all rungs" else {}
        rounded = {k: round(v, 4) for k, v in figures.items()}
        rows.append(Row(name, what, 0, cpu, wall, 1, rounded | targets))
    return rows


BENCHMARKS = {"views": views}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.views", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("WORLDSTEREO_DATA", ".")))
    parser.add_argument("--sets", default=",".join((*SETS, *PHOTOS)))
    parser.add_argument("--fixtures", type=Path, default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--brief", action="store_true", help="both poses and baselines alone")
    parser.add_argument("--thin", default="", help="e.g. 3,4,5,8: so many given views alone")
    parser.add_argument("--rungs", action="store_true")
    parser.add_argument("--sheets", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)
    chosen = parser.parse_args()
    fixtures = chosen.fixtures or chosen.root.parent / "fixtures"
    rows = measure(
        found_folders(chosen.root, chosen.sets.split(",")), fixtures=fixtures, quick=chosen.quick,
        all_rungs=chosen.rungs, sheets=chosen.sheets,
        brief=chosen.brief, thin=[int(n) for n in chosen.thin.split(",") if n],
    )  # fmt: skip
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
