"""Structure from motion: pictures without poses to cameras and sparse points, by pycolmap.

The only importer of pycolmap. It is given pictures that this program wrote, under names of its
own, and nothing that downloads (a vocabulary tree, ONNX weights). The same pictures give the same
bits: one seed, and the order of all lists is fixed.

Source: Schoenberger & Frahm, Structure-from-Motion Revisited, CVPR 2016.
"""

import copy
import itertools
import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldstereo.inputs.lens import Lens
from worldstereo.progress import OnStep, ignore

PHONE_FOCAL = 0.85
"""Focal length over the long side where nothing says better: the middle of phones, .65 to .95."""
FEW = 20
"""Up to so many pictures, points count that are seen from two places only."""
VERY_FEW = 4
"""Up to so many pictures their matches barely tell the focal length from the motion: they get twice
the features, and tags that are no lie hold it where there are few matches even so."""
_EXHAUSTIVE = 60  # pictures whose pairs are all matched; above, those that look alike
_ALIKE, _ROW = 20, 8  # neighbours by looks and in the row, per picture
_VIDEO_ALIKE = 10
CONTRADICTED = 0.02
"""Share of contradicted matches from which poses are doubtful: at most .005 of four sets of photos,
.04 to .33 in rooms of equal tiles."""
_SURE = 0.6  # of the most matches that one of both pictures has with any other
_HELD = 15  # inliers from which two pictures show the same things
_PLAIN = 300  # features a picture below which it is too plain or blurred
_FEW_INLIERS = 100  # below it a pair alone says neither the focal length nor the motion
_APART = math.radians(2)  # points in such directions are not one that was triangulated twice
_FLAT = (4, 5, 6)  # configurations of two views: planar, panoramic, either
_WORDS = 64
_SHARES = {"Finding features": 35, "Matching": 50, "Placing cameras": 15}  # of the time


@dataclass(frozen=True)
class Picture:
    """One picture in the folder that is solved."""

    name: str
    """Its file: upright, distorted as taken."""
    width: int
    height: int
    focal: float | None
    """Pixels, from its tags; None where they do not say."""
    lens: Hashable
    """Pictures that agree in it were taken through the same lens."""


@dataclass(frozen=True)
class Counts:
    """What the pictures have in common, for the sentence that says why there is no model."""

    features: tuple[int, ...]
    """Of each picture."""
    tried: int
    """Pairs of pictures that were compared."""
    inliers: dict[tuple[int, int], int]
    """Of each pair with any match, verified by geometry."""
    turned: frozenset[tuple[int, int]]
    """Pairs that a rotation alone explains: nothing between them tells depth."""
    flat: frozenset[tuple[int, int]] = frozenset()
    """Pairs whose matches lie in one plane, or at infinity: two motions explain a plane."""

    @property
    def held(self) -> list[tuple[int, int]]:
        return [pair for pair, n in self.inliers.items() if n >= _HELD]


@dataclass(frozen=True, eq=False)
class Structure:
    """Cameras of one model, in a frame and at a scale of their own."""

    c2w: dict[int, np.ndarray]
    """By the position of the picture; a picture that is not here was not placed."""
    lenses: dict[int, Lens | None]
    """None: the whole sphere (equirectangular)."""
    points: np.ndarray
    colors: np.ndarray
    """(N, 3) float64 and uint8."""
    distances: np.ndarray
    """(N,) of each point from a camera that sees it."""
    angle: float
    """Median triangulation angle, degrees: how far the camera moved compared with what it saw."""
    error: float
    """Mean reprojection error, pixels."""
    parts: tuple[frozenset[int], ...]
    """Pictures of the other models, largest first, without those of this one."""
    counts: Counts
    contradicted: float = 0.0
    """Share of the verified matches whose two ends are points in different directions. Things that
    repeat match at the wrong copy, and no model fits the right matches and those."""
    sure: int = 0
    """Not 0: so many pairs, those with the most matches, placed the pictures again because the
    first model contradicted too many matches (`contradicted` is that of the first)."""
    rough: bool = False
    """True: the focal length is a guess that the pictures could not improve."""
    cut: bool = False
    """True: the time was over before every picture was tried."""


class NotPlaced(Exception):
    """No model. The text says why, with the number, and what to do; `turned`: offer a panorama."""

    def __init__(self, wrong: str, way_out: str, turned: bool = False) -> None:
        super().__init__(f"{wrong}. {way_out}")
        self.wrong, self.way_out, self.turned = wrong, way_out, turned


def available() -> bool:
    """Whether pycolmap is installed and loads."""
    try:
        import pycolmap  # noqa: F401
    except ImportError:
        return False
    return True


def solve(
    pictures: Sequence[Picture],
    folder: Path,
    work: Path,
    *,
    kind: Literal["photos", "video", "panoramas"] = "photos",
    features: int = 4096,
    threads: int = 2,
    seconds: float = 600.0,
    on_step: OnStep = ignore,
) -> Structure:
    """Cameras of the pictures in `folder`.

    Args:
        work: an own folder. What a run that was stopped left there is used again: features and
            matches are kept under the names of the pictures.
        kind: a video is matched along its row; panoramas are equirectangular pictures.
        features: most features of a picture; twice as many of a panorama, or of very few photos.
        seconds: after this long the model so far is taken.

    Raises:
        NotPlaced: no model that can be believed.
    """
    import pycolmap

    pycolmap.logging.minloglevel = 3
    run = _Run(list(pictures), folder, work, kind, threads, time.monotonic() + seconds, on_step)
    more = kind == "panoramas" or len(pictures) <= VERY_FEW
    run.extract(2 * features if more else features)
    pairs = run.pairs()
    run.match(pairs)
    counts = run.counts(len(pairs))
    _check(counts, len(pictures))
    # So few matches of so few photos do not tell the focal length from the motion.
    few = max(counts.inliers.values(), default=0) < _FEW_INLIERS
    blank = all(p.focal is None for p in pictures)
    guess = len(pictures) <= 3 and kind != "panoramas" and blank and few
    structure = replace(_chosen(run, counts, run.map(fixed=guess)), rough=guess)
    # Tags are whole millimetres: off by 5 %, more than many matches leave open.
    known = all(_agrees(structure, i, p) for i, p in enumerate(pictures))
    if len(pictures) > VERY_FEW:
        return structure if structure.contradicted <= CONTRADICTED else _by_sure(run, structure)
    if few and known:
        return _chosen(run, counts, run.map(fixed=True))
    if not known and not blank:  # a start that far off leads so few photos astray: begin without it
        again = work / "untagged"
        again.mkdir(exist_ok=True)
        bare = [replace(picture, focal=None) for picture in pictures]
        left = run.deadline - time.monotonic()
        return solve(
            bare, folder, again, kind=kind, features=features, threads=threads, seconds=left,
            on_step=on_step,
        )  # fmt: skip
    return structure


def _by_sure(run: "_Run", structure: Structure) -> Structure:
    """Placed again by the pairs with the most matches, if that contradicts half as much.

    Neighbours share more than what a wall of equal tiles shares with itself one tile on.
    """
    counts = structure.counts
    most = np.zeros(len(run.pictures))
    for pair, n in counts.inliers.items():
        most[list(pair)] = np.maximum(most[list(pair)], n)
    kept = {p for p, n in counts.inliers.items() if n >= max(_HELD, _SURE * most[list(p)].min())}
    sure = run.of_pairs(kept)
    try:
        again = _chosen(sure, counts, sure.map())
    except NotPlaced:
        return structure
    if len(again.c2w) < len(structure.c2w) or 2 * again.contradicted > structure.contradicted:
        return structure
    return replace(again, contradicted=structure.contradicted, sure=len(kept))


def _agrees(structure: Structure, i: int, picture: Picture) -> bool:
    """Whether the focal length of the tags is near what the pictures say."""
    lens = structure.lenses.get(i)
    if lens is None or picture.focal is None:
        return False
    return 1 / 1.2 < lens.K[0, 0] / picture.focal < 1.2


class _Run:
    """One database; each stage leaves alone what is already there."""

    def __init__(
        self,
        pictures: list[Picture],
        folder: Path,
        work: Path,
        kind: str,
        threads: int,
        deadline: float,
        on_step: OnStep,
    ) -> None:
        self.pictures, self.folder, self.work, self.kind = pictures, folder, work, kind
        self.threads, self.deadline = threads, deadline
        self.database = work / "matches.db"
        self.names = [p.name for p in pictures]
        self.index = {name: i for i, name in enumerate(self.names)}
        self.say = _Progress(on_step)
        self.sphere = kind == "panoramas"

    def extract(self, features: int) -> None:
        import pycolmap

        options = pycolmap.FeatureExtractionOptions(
            num_threads=self.threads, max_image_size=1 << 14, use_gpu=False
        )
        options.sift.max_num_features = features
        there, done = self._cameras(), 0
        for lens in dict.fromkeys(p.lens for p in self.pictures):
            group = [p for p in self.pictures if p.lens == lens]
            first = group[0]
            reader = pycolmap.ImageReaderOptions(default_focal_length_factor=PHONE_FOCAL)
            if self.sphere:
                reader.camera_model = "EQUIRECTANGULAR"
                reader.camera_params = f"{first.width},{first.height}"
            else:
                reader.camera_model = "SIMPLE_RADIAL"
                middle = f"{first.width / 2},{first.height / 2},0"
                reader.camera_params = f"{first.focal},{middle}" if first.focal else ""
            known = {there[p.name] for p in group if p.name in there}
            if known:
                reader.existing_camera_id = min(known)
            new = [p.name for p in group if p.name not in there]
            done += len(group) - len(new)
            # the first gives its camera to all of its lens, then four a call: both threads work
            first_call = 0 if known else 1
            cuts = [0, *range(first_call, len(new), 4), len(new)]
            for start, end in itertools.pairwise(sorted(set(cuts))):
                chunk = new[start:end]
                if reader.existing_camera_id > 0:
                    self._list(chunk, reader.existing_camera_id)
                pycolmap.extract_features(
                    self.database,
                    self.folder,
                    chunk,
                    pycolmap.CameraMode.SINGLE,
                    reader,
                    options,
                    pycolmap.Device.cpu,
                )
                if reader.existing_camera_id < 1:
                    reader.existing_camera_id = self._cameras()[chunk[0]]
                done += len(chunk)
                self.say("Finding features", done, len(self.names), "photos")

    def of_pairs(self, kept: set[tuple[int, int]]) -> "_Run":
        """The same with what was matched between these pairs alone, in a folder of its own."""
        import pycolmap

        work = self.work / "sure"
        work.mkdir(exist_ok=True)
        out = copy.copy(self)
        out.work, out.database = work, work / "matches.db"
        # By hand: the import process forbids all of shutil.
        with self.database.open("rb") as source, out.database.open("wb") as copied:
            while part := source.read(1 << 20):
                copied.write(part)
        with pycolmap.Database.open(out.database) as db:
            where = {i.image_id: self.index[i.name] for i in db.read_all_images()
                     if i.name in self.index}  # fmt: skip
            codes, _ = db.read_two_view_geometries()
            for code in codes:
                a, b = (int(v) for v in pycolmap.pair_id_to_image_pair(code))
                pair = sorted((where.get(a, -1), where.get(b, -1)))
                if tuple(pair) not in kept:
                    db.delete_two_view_geometry(a, b)
        return out

    def _list(self, names: list[str], camera: int) -> None:
        """Pictures enter the database in their order, not in that in which threads end.

        Their numbers decide what is placed first: other numbers would give other bits.
        """
        import pycolmap

        with pycolmap.Database.open(self.database) as db:
            sensor = pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera)
            rig = db.read_rig_with_sensor(sensor)
            assert rig is not None
            for name in names:
                if db.exists_image(name):
                    continue
                image = pycolmap.Image(name=name, camera_id=camera)
                image.image_id = db.write_image(image)
                frame = pycolmap.Frame()
                frame.rig_id = rig.rig_id
                frame.add_data_id(image.data_id)
                db.write_frame(frame)

    def _cameras(self) -> dict[str, int]:
        """The camera of every picture whose features are there."""
        import pycolmap

        if not self.database.exists():
            return {}
        with pycolmap.Database.open(self.database) as db:
            return {
                image.name: image.camera_id
                for image in db.read_all_images()
                if db.exists_keypoints(image.image_id) and db.exists_descriptors(image.image_id)
            }

    def pairs(self) -> list[tuple[int, int]]:
        n = len(self.pictures)
        if self.kind == "video" and n > 3:
            steps = [1 << k for k in range(n.bit_length()) if 1 << k < n]
            row = {(i, i + s) for s in steps for i in range(n - s)}
            return sorted(row | self._alike(_VIDEO_ALIKE))
        if n <= _EXHAUSTIVE:
            return list(itertools.combinations(range(n), 2))
        near = (*range(1, _ROW + 1), 16, 32)
        return sorted(self._alike(_ALIKE) | {(i, i + s) for s in near for i in range(n - s)})

    def _alike(self, each: int) -> set[tuple[int, int]]:
        """Pairs that look alike, by a VLAD of the set's own descriptors.

        Source: Jegou et al., Aggregating local descriptors into a compact image representation,
        CVPR 2010.
        """
        import cv2
        import pycolmap

        with pycolmap.Database.open(self.database) as db:
            ids = {image.name: image.image_id for image in db.read_all_images()}
            sets = [
                np.asarray(db.read_descriptors(ids[n]).data, np.float32).reshape(-1, 128) / 512
                for n in self.names
            ]
        some = np.concatenate([d[:: max(1, len(d) // 400)] for d in sets])
        if len(some) < _WORDS:
            return set()
        cv2.setRNGSeed(0)
        first = np.zeros((len(some), 1), np.int32)
        words = cv2.kmeans(some, _WORDS, first, (3, 15, 1e-3), 1, cv2.KMEANS_PP_CENTERS)[2]
        flat = np.zeros((len(sets), _WORDS, 128), np.float32)
        for v, d in zip(flat, sets, strict=True):
            word = (d @ words.T - 0.5 * (words * words).sum(1)).argmax(1)
            np.add.at(v, word, d - words[word])
        flat /= np.maximum(np.linalg.norm(flat, axis=2, keepdims=True), 1e-6)
        flat = flat.reshape(len(sets), -1)
        alike = flat @ flat.T
        np.fill_diagonal(alike, -np.inf)
        order = np.argsort(-alike, axis=1, kind="stable")[:, :each]
        return {
            (min(i, int(j)), max(i, int(j)))
            for i in range(len(sets))
            for j in order[i]
            if i != int(j)
        }

    def match(self, pairs: list[tuple[int, int]]) -> None:
        import pycolmap

        options = pycolmap.FeatureMatchingOptions(num_threads=self.threads, use_gpu=False)
        listed = pycolmap.ImportedPairingOptions(match_list_path=self.work / "pairs.txt")
        verifying = pycolmap.TwoViewGeometryOptions()
        verifying.ransac.random_seed = 0
        chunk = 25 if len(self.names) <= FEW else 100
        for at in range(0, len(pairs), chunk):
            lines = (f"{self.names[a]} {self.names[b]}" for a, b in pairs[at : at + chunk])
            (self.work / "pairs.txt").write_text("\n".join(lines))
            pycolmap.match_image_pairs(
                self.database, options, listed, verifying, device=pycolmap.Device.cpu
            )
            self.say("Matching", min(at + chunk, len(pairs)), len(pairs), "pairs")

    def counts(self, tried: int) -> Counts:
        import pycolmap

        with pycolmap.Database.open(self.database) as db:
            where = {i.image_id: self.index[i.name] for i in db.read_all_images()
                     if i.name in self.index}  # fmt: skip
            features = [0] * len(self.names)
            for image, i in where.items():
                features[i] = db.num_keypoints_for_image(image)
            inliers: dict[tuple[int, int], int] = {}
            turned: set[tuple[int, int]] = set()
            flat: set[tuple[int, int]] = set()
            keys: dict[int, np.ndarray] = {}
            for code, geometry in zip(*db.read_two_view_geometries(), strict=True):
                a, b = (int(v) for v in pycolmap.pair_id_to_image_pair(code))
                if a not in where or b not in where:
                    continue
                pair = min(where[a], where[b]), max(where[a], where[b])
                matches = np.asarray(geometry.inlier_matches)
                inliers[pair] = len(matches)
                if len(matches) < _HELD:
                    continue
                if int(geometry.config) in _FLAT:
                    flat.add(pair)
                for image in (a, b):
                    if image not in keys:
                        keys[image] = _positions(db.read_keypoints(image))
                first, second = self.pictures[where[a]], self.pictures[where[b]]
                if self.sphere:
                    rotated = _turned_sphere(
                        keys[a][matches[:, 0]], keys[b][matches[:, 1]], first, second
                    )
                else:
                    rotated = _turned(keys[a][matches[:, 0]], keys[b][matches[:, 1]], first, second)
                if rotated:
                    turned.add(pair)
        pairs = dict(sorted(inliers.items()))
        return Counts(tuple(features), tried, pairs, frozenset(turned), frozenset(flat))

    def contradicted(self, model: Any) -> float:
        """`Structure.contradicted` of a model."""
        import pycolmap

        ids = sorted(model.points3D)
        row = {key: i for i, key in enumerate(ids)}
        xyz = np.array([model.points3D[key].xyz for key in ids]).reshape(-1, 3)
        images = {i.image_id: i for i in model.images.values() if i.has_pose}
        eye = {k: image.projection_center() for k, image in images.items()}
        point = {
            k: np.array([row[p.point3D_id] if p.has_point3D() else -1 for p in image.points2D])
            for k, image in images.items()
        }
        told = wrong = 0
        with pycolmap.Database.open(self.database) as db:
            for code, geometry in zip(*db.read_two_view_geometries(), strict=True):
                a, b = (int(v) for v in pycolmap.pair_id_to_image_pair(code))
                matches = np.asarray(geometry.inlier_matches, np.int64).reshape(-1, 2)
                if a not in images or b not in images or len(matches) < _HELD:
                    continue
                p, q = point[a][matches[:, 0]], point[b][matches[:, 1]]
                both = (p >= 0) & (q >= 0)
                p, q = xyz[p[both]], xyz[q[both]]
                # one point of two tracks is seen in one direction, however rough its depth
                cosines = [(_unit(p - eye[k]) * _unit(q - eye[k])).sum(1) for k in (a, b)]
                told += len(p)
                wrong += int((np.minimum(*cosines) < math.cos(_APART)).sum())
        return wrong / max(1, told)

    def map(self, *, fixed: bool = False) -> list[Any]:
        """Models, most pictures first; `fixed` leaves the focal length as it is."""
        import pycolmap

        n = len(self.pictures)
        options = pycolmap.IncrementalPipelineOptions(
            num_threads=1,  # two threads add in another order each time: other bits
            random_seed=0,
            min_model_size=min(3, n),
            max_num_models=10,
            max_runtime_seconds=max(1, int(self.deadline - time.monotonic())),
        )
        options.triangulation.ignore_two_view_tracks = n > FEW
        options.mapper.random_seed = options.triangulation.random_seed = 0
        if fixed:
            options.ba_refine_focal_length = options.ba_refine_extra_params = False
            options.mapper.abs_pose_refine_focal_length = False
            options.mapper.abs_pose_refine_extra_params = False
        placed = itertools.count(3)
        self.say("Placing cameras", min(2, n), n, "photos")
        found = pycolmap.incremental_mapping(
            self.database,
            self.folder,
            self.work,
            options,
            next_image_callback=lambda: self.say(
                "Placing cameras", min(n, next(placed)), n, "photos"
            ),
        )
        return sorted(found.values(), key=lambda m: (-m.num_reg_images(), -len(m.points3D)))


class _Progress:
    """Stage and count to one bar with the time left, as measured so far in the same run."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step, self._start = on_step, time.monotonic()

    def __call__(self, stage: str, done: int, total: int, what: str) -> None:
        stages, whole = list(_SHARES), sum(_SHARES.values())
        before = sum(_SHARES[s] for s in stages[: stages.index(stage)])
        part = (before + _SHARES[stage] * done / max(total, 1)) / whole
        spent = time.monotonic() - self._start
        left = spent * (1 - part) / max(part, 1e-6)
        text = f"{stage}: {done} of {total} {what}"
        if spent > 3 and left > 3:
            text += f", about {left:.0f} s left"
        self._on_step(round(1000 * part), 1000, text)


def _positions(keypoints: Any) -> np.ndarray:
    """(N, 2) pixels; pycolmap hands an array or a list of keypoints over."""
    if isinstance(keypoints, np.ndarray):
        return keypoints[:, :2].astype(np.float64)
    data = getattr(keypoints, "data", None)
    if isinstance(data, np.ndarray):
        return data[:, :2].astype(np.float64)
    return np.array([[k.x, k.y] for k in keypoints], np.float64).reshape(-1, 2)


def _turned(x: np.ndarray, y: np.ndarray, a: Picture, b: Picture) -> bool:
    """Whether a rotation about the camera's own centre explains the matches (N, 2), (N, 2).

    The focal length may be unknown: it does if any from half to twice the long side does. A flat
    wall seen from two places is another homography and does not pass.
    """
    best = math.inf
    side = max(a.width, a.height, b.width, b.height)
    known = a.focal is not None and b.focal is not None
    for factor in (0.85, 1.0, 1.2) if known else np.geomspace(0.5, 2.2, 10):
        fa = factor * (a.focal if known else max(a.width, a.height))  # type: ignore[operator]
        fb = factor * (b.focal if known else max(b.width, b.height))  # type: ignore[operator]
        rays = _unit(np.column_stack([(x - [a.width / 2, a.height / 2]) / fa, np.ones(len(x))]))
        seen = _unit(np.column_stack([(y - [b.width / 2, b.height / 2]) / fb, np.ones(len(y))]))
        best = min(best, _rotation_error(rays, seen) * fb)
    return bool(best < max(1.5, 1.5e-3 * side))


def _turned_sphere(x: np.ndarray, y: np.ndarray, a: Picture, b: Picture) -> bool:
    error = _rotation_error(_directions(x, a), _directions(y, b)) * b.width / (2 * math.pi)
    return bool(error < max(1.5, 1.5e-3 * b.width))


def _directions(x: np.ndarray, p: Picture) -> np.ndarray:
    across, down = (x[:, 0] / p.width - 0.5) * 2 * math.pi, (x[:, 1] / p.height - 0.5) * math.pi
    return np.column_stack(
        [np.sin(across) * np.cos(down), np.sin(down), np.cos(across) * np.cos(down)]
    )


def _rotation_error(rays: np.ndarray, seen: np.ndarray) -> float:
    """Upper quartile of the angle that the best rotation leaves, radians.

    The quartile, not the median: a person turns about a point near the camera, and the far half of
    what is seen hardly notices.

    Source: Kabsch, Acta Crystallographica 1976; three rounds without the worst third.
    """
    kept = np.ones(len(rays), bool)
    error = np.full(len(rays), math.inf)
    for _ in range(3):
        U, _, Vt = np.linalg.svd(seen[kept].T @ rays[kept])
        R = U @ np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))]) @ Vt
        error = np.linalg.norm(seen - rays @ R.T, axis=1)
        kept = error <= np.quantile(error, 0.67)
    return float(np.quantile(error, 0.75))


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _check(counts: Counts, n: int) -> None:
    """What the counts alone rule out.

    Raises:
        NotPlaced
    """
    usual = float(np.median(counts.features))
    held = counts.held
    if usual < _PLAIN and len(held) < n - 1:
        raise NotPlaced(
            f"{usual:.0f} features a photo, too plain or blurred",
            "Take sharper photos of things with texture",
        )
    if not held:
        raise NotPlaced(
            f"{len(held)} of {counts.tried} pairs of photos show the same things",
            "Take photos in between",
        )
    if len(counts.turned & set(held)) > 0.9 * len(held):
        raise _only_turned()


def _only_turned() -> NotPlaced:
    return NotPlaced(
        "the camera turned but did not move",
        "Step sideways between photos, or give one panorama",
        turned=True,
    )


def _chosen(run: _Run, counts: Counts, models: list[Any]) -> Structure:
    """The largest model that can be believed.

    Raises:
        NotPlaced
    """
    n, held = len(run.pictures), counts.held
    turned = len(counts.turned & set(held)) > 0.5 * len(held)
    believed, moved = [], []
    for model in models:
        structure = _structure(run, counts, model)
        if structure is None:
            continue
        believed.append(structure)
        if not turned or structure.angle > 2.0:
            moved.append((structure, model))
    if moved:
        first, model = moved[0]
        taken, parts = set(first.c2w), []
        for other in models:
            images = [i for i in other.images.values() if i.has_pose]
            part = {run.index[image.name] for image in images} - taken
            if part:
                parts.append(frozenset(part))
                taken |= part
        cut = time.monotonic() > run.deadline - 1
        contradicted = run.contradicted(model)
        return replace(first, parts=tuple(parts), contradicted=contradicted, cut=cut)
    if turned:
        raise _only_turned()
    if len(held) < n - 1 or not believed:
        raise NotPlaced(
            f"{len(held)} of {counts.tried} pairs of photos show the same things, too few to place "
            f"them",
            "Take photos in between",
        )
    raise NotPlaced("the photos do not fit one still scene", "Take photos in between")


def _structure(run: _Run, counts: Counts, model: Any) -> Structure | None:
    """The model as ours; None when it is too weak to be believed."""
    images = sorted(
        (image for image in model.images.values() if image.has_pose), key=lambda i: i.name
    )
    where = {image.image_id: run.index[image.name] for image in images}
    if len(images) < 2 or len(model.points3D) < 10 * len(images):
        return None
    pairs = [counts.inliers.get(p, 0) for p in itertools.combinations(sorted(where.values()), 2)]
    # A pair alone, of more photos than two: held by few matches, or by those on one plane, which
    # two motions explain, nothing tells right from wrong.
    weak = max(pairs, default=0) < _FEW_INLIERS and len(images) <= 3
    weak = weak or (len(images) == 2 and tuple(sorted(where.values())) in counts.flat)
    if weak and len(run.pictures) > len(images):
        return None
    c2w, lenses = {}, {}
    for image in images:
        pose: Any = image.cam_from_world
        pose = pose() if callable(pose) else pose  # a method since pycolmap 3.12
        matrix = np.eye(4)
        matrix[:3] = pose.inverse().matrix()
        camera = model.cameras[image.camera_id]
        i = where[image.image_id]
        c2w[i] = matrix
        if run.sphere:
            lenses[i] = None
            continue
        f, cx, cy, k = (float(v) for v in camera.params)
        side = max(camera.width, camera.height)
        if not 0.4 * side <= f <= 3 * side:
            return None  # no lens that people have: the model explains the pictures wrongly
        K = np.array([[f, 0, cx], [0, f, cy], [0, 0, 1.0]])
        lenses[i] = Lens(K, camera.width, camera.height, (k,) if k else ())
    order = sorted(model.points3D)
    points, colors, distances, angles = [], [], [], []
    for key in order:
        point = model.points3D[key]
        seen = [c2w[where[e.image_id]][:3, 3] for e in point.track.elements]
        rays = _unit(np.array(seen) - point.xyz)
        points.append(point.xyz)
        colors.append(point.color)
        distances.append(np.linalg.norm(point.xyz - seen[0]))
        angles.append(math.degrees(math.acos(np.clip((rays @ rays.T).min(), -1, 1))))
    return Structure(
        c2w=c2w,
        lenses=lenses,
        points=np.array(points),
        colors=np.array(colors, np.uint8),
        distances=np.array(distances),
        angle=float(np.median(angles)),
        error=float(model.compute_mean_reprojection_error()),
        parts=(),
        counts=counts,
    )
