"""Contact sheets of `bench/views.py`: what was predicted beside the truth, to be looked at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bench.views_sets import image_of, psnr, splat_and_nearest, ssim
from worldstereo.views.fusion import make_view_arrays


def sheet(bench: Any, memory: Sequence[Any], folder: Path) -> None:
    """Truth, splat, ours, error x3 and origin (grey: stereo, blue: global, red: invented)."""
    pick = np.unique(np.linspace(0, len(bench.targets) - 1, 5).astype(int))
    colors = np.array([[0.3, 0.4, 0.9], [0.6, 0.6, 0.6], [0.9, 0.3, 0.2], [0.2, 0.2, 0.2]])
    rows = []
    for i in pick:
        k, target, truth, _ = bench.targets[i]
        result = memory[k](target, splat=memory[k].splat(target))
        image = image_of(result)
        plain = splat_and_nearest(bench.kept[k], make_view_arrays(target))
        origin = colors[result.origin[0].numpy()].astype(np.float32)
        tiles = [truth, plain, image, np.clip(3 * np.abs(image - truth), 0, 1), origin]
        labels = [
            f"truth {target.name}",
            f"splat {psnr(plain, truth):.1f} dB",
            f"ours {psnr(image, truth):.1f} dB {ssim(image, truth).mean():.3f}",
            "error x3",
            "origin",
        ]
        rows.append(np.hstack([_labelled(a, b) for a, b in zip(tiles, labels, strict=True)]))
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{bench.name}.png"), np.vstack(rows)[:, :, ::-1])


def _labelled(image: np.ndarray, text: str) -> np.ndarray:
    h = round(image.shape[0] * 400 / image.shape[1])
    tile = cv2.resize(
        np.ascontiguousarray(image, np.float32), (400, h), interpolation=cv2.INTER_AREA
    )
    tile = np.ascontiguousarray((tile.clip(0, 1) * 255).astype(np.uint8))
    cv2.putText(tile, text, (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(tile, text, (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return tile
