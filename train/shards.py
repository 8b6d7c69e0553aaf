"""Shards of scenes and of tuples, written by one process or by several."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from train.scenes import load_textures, make_scenes
from train.tuples import make_tuples
from worldstereo._atomic import write_atomic


def write_scenes(
    textures: Path, held_out: bool, many: int, views: int, size: int, seed: int, path: Path
) -> None:
    """`many` scenes of `views` views each; they follow from the seed alone."""
    shard = make_scenes(many, seed, load_textures(textures, held_out), views, size)
    _save(shard, path)


def write_tuples(scenes: Path, many: int, seed: int, path: Path) -> None:
    """`many` tuples of one shard of scenes."""
    items = list(make_tuples(load_file(scenes), many, seed))
    _save({name: torch.stack([item[name] for item in items]) for name in items[0]}, path)


def each(work: Callable[..., None], jobs: Sequence[tuple], workers: int) -> None:
    """Every job done; a line for each as it ends. The first error ends them all."""
    if workers == 1:
        for i, job in enumerate(jobs):
            work(*job)
            print(f"{i + 1} of {len(jobs)}", flush=True)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_one_thread) as processes:
        running = [processes.submit(work, *job) for job in jobs]
        for i, done in enumerate(as_completed(running)):
            done.result()
            print(f"{i + 1} of {len(jobs)}", flush=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    write_atomic(path, save({name: value.contiguous() for name, value in tensors.items()}))
