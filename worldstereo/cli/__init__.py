"""The command line: `python -m worldstereo explore | export | reconstruct | add | info | batch`.

Heavy imports live inside the commands, so that `--help` answers at once.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

# Before NumPy is imported: a helper of its BLAS spins for tens of milliseconds after each product
# of a few thousand rows. Kernels have their own threads, which sleep.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if TYPE_CHECKING:
    from worldstereo.generators import Generator
    from worldstereo.generators.diffusion.official import Example
    from worldstereo.scene import Scene
    from worldstereo.trajectory import Trajectory
    from worldstereo.world import World


@dataclass(frozen=True)
class Explore:
    """Generate the views of a path through a capture, and write the grown world."""

    input: Annotated[Path, tyro.conf.Positional]
    """Photos (a folder or zip, with or without poses), one photo or panorama, a video, a mesh or
    point cloud, or a saved project."""

    out: Path = Path("world")
    """Folder for the results: frames, clip.mp4, the exports and the project."""

    trajectory: str = "orbit"
    """orbit, dolly, truck, crane, pan, tilt, spiral, zoom, look_around, or a JSON file: one of
    ours, or the camera.json of an official WorldStereo example."""

    amount: float = 1.0
    """Strength of the preset; 0.5 is half the way, -1 the other direction."""

    frames: int = 25
    """Frames of a preset path."""

    width: int = 640
    """Width of the frames in pixels."""

    height: int = 480
    """Height of the frames in pixels."""

    seed: int = 0
    """Same seed, same device, same bits."""

    prompt: str | None = None
    """For generators that read text; where not given, what came with the input (prompt.json), else
    the generator's own default."""

    negative_prompt: str = ""
    """What guidance leads away from; the checkpoint's own where empty."""

    steps: int | None = None
    """Denoising steps; where not given, as many as the model was made for."""

    guidance: float = 5.0
    """Guidance scale of models that are not distilled; 1 switches it off."""

    guide: Literal["fused", "cloud", "renders"] = "fused"
    """Both memories, the global point cloud alone, or the render.mp4 and render_mask.mp4 that lie
    beside an official example's camera.json."""

    generator: str = "warp"
    """warp (neither weights nor GPU), inpaint, diffusion, or another registered generator's
    name."""

    painter: str = "auto"
    """Who paints for the inpaint generator: telea, navier-stokes, another registered painter, or a
    folder or hub id of an inpainting model; auto takes --model where it holds one, else telea."""

    model: str | None = None
    """Folder, or hub id, with the weights of the diffusion generator."""

    variant: str | None = None
    """worldstereo-camera, worldstereo-memory or worldstereo-memory-dmd."""

    base: Path | None = None
    """Folder of the Wan base model, where the checkpoint does not name one that is installed."""

    memory_mode: str = "auto"
    """How the weights fit the card: auto, full, float8, int8, int4, group or sequential."""

    constraint: Literal["none", "mask", "bias"] = "none"
    """What attention may see of the references: all, as released; only what corresponds in 3D; or
    that first."""

    devices: int = 1
    """Devices that share one generation of the diffusion generator; the same command runs on
    each (torchrun)."""

    register: bool = True
    """Register the given views to each other first."""

    relocalize: bool = True
    """Find views whose given poses agree with nobody by their pictures."""

    export: tuple[str, ...] = ("ply", "mp4")
    """Formats to write; `worldstereo formats` lists them."""


@dataclass(frozen=True)
class Export:
    """Write a saved project, or a capture as it enters the memories, in another format."""

    input: Annotated[Path | None, tyro.conf.Positional] = None
    """A saved project, or anything that `explore` accepts."""

    format: tuple[str, ...] = ("ply",)
    """Any of the exporters, several at once; `--list` and `worldstereo formats` name them."""

    generated: bool = True
    """Include generated views, points and surfaces."""

    megabytes: float = 15.0
    """The most that the page to send (html) may take."""

    list: bool = False
    """Say which formats there are, and with a world how large each will be."""

    out: Path = Path("export")
    """Folder for the files."""


@dataclass(frozen=True)
class Add:
    """Find photos without poses in a world, and let it grow by those that were found."""

    world: Annotated[Path, tyro.conf.Positional]
    """A saved project folder, which is saved again; or anything that `explore` accepts."""

    photos: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Pictures, folders or zips of them, or videos, of which the keyframes are added."""

    out: Path | None = None
    """Project folder to write instead; needed where WORLD is not a project folder."""

    doubtful: bool = False
    """Also add photos whose place is uncertain."""


@dataclass(frozen=True)
class Reconstruct:
    """Build a mesh from a capture or a saved project."""

    input: Annotated[Path, tyro.conf.Positional]
    """A saved project, or anything that `explore` accepts."""

    out: Path = Path("mesh.glb")
    """The file: .glb, .gltf, .obj, .ply, .stl, .usdz or .usda."""

    quality: Literal["draft", "standard", "fine"] = "standard"
    """Size of a cell and number of triangles."""

    voxel: float | None = None
    """Size of a cell in scene units, instead of the quality's."""

    texture: int = 2048
    """Side of the texture in pixels; 0 for vertex colors only."""

    generated: bool = True
    """Include generated surfaces, marked."""

    fill_holes: bool = False
    """Include surfaces that were completed from their surroundings, marked."""

    register: bool = True
    """Register the given views to each other first."""

    relocalize: bool = True
    """Find views whose given poses agree with nobody by their pictures."""


@dataclass(frozen=True)
class Info:
    """Say what a capture or a project holds."""

    input: Annotated[Path, tyro.conf.Positional]
    """A saved project, or anything that `explore` accepts."""


@dataclass(frozen=True)
class Depth:
    """Get a depth model into the local hub cache; without --get, say which one is used."""

    model: Annotated[str, tyro.conf.Positional] = ""
    """A hub id; where not given, Depth Anything V2 small (about 100 MB, Apache-2.0)."""

    get: bool = False
    """Download it now. What a download that was stopped had fetched is used again."""


@dataclass(frozen=True)
class Painter:
    """Show licence and size of an inpainting model; with --get, download it to the hub cache."""

    model: Annotated[str, tyro.conf.Positional]
    """A hub id like owner/name."""

    get: bool = False
    """You agree to the licence: download it now. Only safetensors are fetched."""


@dataclass(frozen=True)
class Formats:
    """List what can be opened, exported and generated with, and the depth estimators."""


@dataclass(frozen=True)
class Batch:
    """Run many captures through open, path, generate and export, on Ray; done ones are kept."""

    manifest: Annotated[Path, tyro.conf.Positional]
    """CSV, JSON list or JSON lines: input, and as wanted name, trajectory, amount, frames, width,
    height, seed, generator, export."""

    out: Path = Path("batch")
    """Folder of the results, with index.html and results.csv."""

    address: str = ""
    """A Ray cluster, such as auto or ray://host:10001; this machine where empty."""

    cpus: float = 1.0
    """Processors of each task."""

    gpus: float = 0.0
    """GPUs of each task."""

    memory_gb: float = 0.0
    """Resident memory that a task may add to its process; 0 for no limit."""

    seconds: float = 3600.0
    """Time after which a task is stopped; 0 for no limit."""


@dataclass(frozen=True)
class Options:
    """What every command takes."""

    command: Annotated[
        Annotated[Explore, tyro.conf.subcommand("explore")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Add, tyro.conf.subcommand("add")]
        | Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
        | Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Depth, tyro.conf.subcommand("depth")]
        | Annotated[Painter, tyro.conf.subcommand("painter")]
        | Annotated[Formats, tyro.conf.subcommand("formats")]
        | Annotated[Batch, tyro.conf.subcommand("batch")],
        tyro.conf.arg(name=""),
    ]
    depth: str | None = None
    """Depth of single photos: auto (a model in the local hub cache, else a rough layout), none, a
    model's folder or hub id, a recorded depth map (16-bit PNG in millimetres, TIFF), or one that
    `worldstereo formats` lists, as NAME or NAME:ARGUMENT."""
    verbose: bool = field(default=False)
    """Log what happens."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. A refusal is one line on standard error."""
    options = tyro.cli(Options, prog="worldstereo", description=__doc__, args=arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING)
    from worldstereo.errors import WorldStereoError

    commands: dict[type, Callable[..., None]] = {
        Explore: _explore,
        Export: _export,
        Reconstruct: _reconstruct,
        Add: _add,
        Info: _info,
        Depth: _depth,
        Painter: _painter,
        Formats: _formats,
        Batch: _batch,
    }
    run = commands[type(options.command)]
    try:
        if options.depth is not None:
            from worldstereo.depth import use

            use(options.depth)
        run(options.command)
    except (WorldStereoError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; nothing half-made was kept.", file=sys.stderr)
        return 130
    return 0


def _explore(command: Explore) -> None:
    from worldstereo.generators import SamplerConfig

    _check_formats(command.export)
    sampler = SamplerConfig(steps=command.steps, guidance=command.guidance)
    if command.devices != 1:
        _launch(command)
    from worldstereo.world import explore

    generator = _generator(command)
    example = _example(command, generator)
    world, prompt = _open(command.input, generator, command.register, command.relocalize)
    path = example.trajectory if example is not None else _path(command, world.scene)
    prompt = (example.prompt if example is not None else "") or prompt
    guide = command.guide
    if guide == "renders":
        if example is None or example.guide is None:
            raise ValueError(
                "guide renders needs --trajectory FOLDER/camera.json with render.mp4 and "
                "render_mask.mp4 beside it."
            )
        guide = example.guide
    prompt = command.prompt if command.prompt is not None else prompt
    explore(
        world,
        path,
        seed=command.seed,
        prompt=prompt or ("" if command.prompt is not None else generator.limits.default_prompt),
        negative_prompt=command.negative_prompt,
        guide=guide,
        sampler=sampler,
        on_step=_progress,
    )
    if command.generator == "diffusion":
        from worldstereo.generators.diffusion import distributed

        writes = distributed.writes()
        distributed.leave()
        if not writes:
            return  # another process of the same job writes the results
    _write_all(world, command.out, command.export)
    from worldstereo.project import save_world

    save_world(world, command.out / "project.world")
    _print_facts(world.scene)


def _export(command: Export) -> None:
    from worldstereo.generators import WarpGenerator

    if command.list or command.input is None:
        _list_formats(command)
        return
    _check_formats(command.format)
    world = _open(command.input, WarpGenerator(), True)[0]
    asked = {"generated": command.generated, "megabytes": command.megabytes}
    _write_all(world, command.out, command.format, asked)


def _list_formats(command: Export) -> None:
    from worldstereo.exports import GROUPS, estimate, exporters, why_not
    from worldstereo.generators import WarpGenerator

    scene = None
    if command.input is not None:
        scene = _open(command.input, WarpGenerator(), True)[0].scene
    for group, title in GROUPS.items():
        print(f"{title}:")
        for name, form in exporters().items():
            if form.group != group:
                continue
            cost = ""
            if scene is not None:
                cost = why_not(scene, name)
                if not cost:
                    guess = estimate(scene, name, megabytes=command.megabytes)
                    cost = f"about {guess.bytes / 1e6:.1f} MB, {guess.seconds:.0f} s"
            print(f"  {name:14} {form.describes} {cost}".rstrip())


def _reconstruct(command: Reconstruct) -> None:
    from worldstereo.generators import WarpGenerator
    from worldstereo.reconstruct import SurfaceOptions, estimate_surface, reconstruct_surface
    from worldstereo.reconstruction import export_mesh, mesh_format

    mesh_format(command.out)
    options = SurfaceOptions(
        quality=command.quality,
        voxel=command.voxel,
        texture=command.texture,
        generated=command.generated,
        fill_holes=command.fill_holes,
    )
    world, _ = _open(command.input, WarpGenerator(), command.register, command.relocalize)
    scene = world.scene
    guess = estimate_surface(scene, options)
    print(
        f"cells of {guess.voxel:.3g}, about {guess.seconds:.0f} s, "
        f"{guess.bytes / 1e6:.0f} MB of memory, {guess.file_bytes / 1e6:.0f} MB of file"
    )
    result = reconstruct_surface(scene, options, on_step=_progress)
    path = export_mesh(result, command.out, context=scene, texture_resolution=command.texture or 64)
    print(f"{path}: {len(result.mesh):,} triangles")


def _add(command: Add) -> None:
    from worldstereo.generators import WarpGenerator
    from worldstereo.project import is_project, load_world, save_world
    from worldstereo.world import World, add

    out = command.out
    plan, settings = None, {}
    if is_project(command.world):
        if out is None and not command.world.is_dir():
            raise ValueError(f"{command.world.name} is a packed project: name --out FOLDER.")
        world = World(WarpGenerator())
        plan, settings = load_world(world, command.world)
        out = out or command.world
    elif out is None:
        raise ValueError(f"{command.world.name} is not a saved project: name --out FOLDER.")
    else:
        world = _open(command.world, WarpGenerator(), True)[0]
    report = add(world, command.photos, doubtful=command.doubtful, on_step=_progress)
    for line in report.lines():
        print(line)
    if report.added or out != command.world:
        save_world(world, out, plan=plan, settings=settings)
        print(out)


def _info(command: Info) -> None:
    from worldstereo.generators import WarpGenerator

    _print_facts(_open(command.input, WarpGenerator(), True)[0].scene)


def _depth(command: Depth) -> None:
    from worldstereo.depth import SUGGESTED, download, model_folder

    if command.get:
        print(download(command.model or SUGGESTED, on_step=_progress))
    elif command.model:
        raise ValueError(f"add --get to download {command.model}; nothing was fetched.")
    else:
        folder = model_folder()
        print("No depth model is here: add --get." if folder == "none" else folder)


def _painter(command: Painter) -> None:
    from worldstereo.generators.inpaint import download, offer

    found = offer(command.model)
    print(found)
    if command.get:
        print(download(found, on_step=_progress))
    else:
        print("Nothing was fetched; --get downloads it under this licence.")


def _formats(command: Formats) -> None:
    from worldstereo.cli.formats import tables

    print("\n\n".join(table.text() for table in tables().values()))


def _batch(command: Batch) -> None:
    from worldstereo.cli.batch import RayPool, run_batch
    from worldstereo.errors import WorldStereoError

    pool = RayPool(
        command.address,
        cpus=command.cpus,
        gpus=command.gpus,
        gigabytes=command.memory_gb,
        seconds=command.seconds,
    )

    def report(line: str) -> None:
        print(line, file=sys.stderr)

    results = run_batch(command.manifest, command.out, pool, report)
    failed = sum(result.state == "failed" for result in results)
    print(command.out / "index.html")
    if failed:
        raise WorldStereoError(f"{failed} of {len(results)} tasks failed; the report names them.")


def _launch(command: Explore) -> None:
    """Starts this very command on several devices, unless this is one of them; does not return."""
    from worldstereo.generators.diffusion import distributed

    if command.generator != "diffusion":
        raise ValueError(
            f"devices must be 1 for the {command.generator} generator, got {command.devices}."
        )
    if not distributed.wanted():
        arguments = _without_devices(sys.argv[1:])
        sys.exit(distributed.launch(command.devices, ["worldstereo", *arguments]))


def _example(command: Explore, generator: "Generator") -> "Example | None":
    """The official example that `--trajectory .../camera.json` names."""
    file = Path(command.trajectory)
    if file.name != "camera.json" or not file.is_file():
        return None
    from worldstereo.generators.diffusion import read_example
    from worldstereo.generators.diffusion.config import SIZES

    config = getattr(getattr(generator, "published", None), "config", None)
    sizes, nframe = (config.sizes, config.nframe) if config is not None else (SIZES, 21)
    return read_example(file.parent, sizes=sizes, nframe=nframe)


def _open(
    path: Path, generator: "Generator", register: bool, relocalize: bool = True
) -> "tuple[World, str]":
    """The world of an input, and the prompt that came with it."""
    from worldstereo.inputs import read
    from worldstereo.project import is_project, load_world
    from worldstereo.world import World, start

    world, prompt = World(generator), ""
    if is_project(path):
        load_world(world, path)
    else:
        capture = read(path, on_step=_progress)
        prompt = capture.prompt
        start(
            world,
            capture,
            register=register,
            relocalize=relocalize,
            on_step=_progress,
        )
    return world, prompt


def _generator(command: Explore) -> "Generator":
    from worldstereo.errors import WeightsMissing
    from worldstereo.generators.registry import GeneratorSettings, choice

    settings = GeneratorSettings(
        model=command.model,
        variant=command.variant,
        base=command.base,
        constraint=command.constraint,
        painter=command.painter,
        offline=False,
    )
    chosen = choice(command.generator, settings)
    if chosen.why_not:
        raise WeightsMissing(f"Generator {chosen.name}: {chosen.why_not}")
    if chosen.modes is None:
        return chosen.make()
    return chosen.make(mode=command.memory_mode, on_step=_progress)


def _without_devices(arguments: list[str]) -> list[str]:
    """The command line for each device: without `--devices N`, which started them."""
    kept = [a for a in arguments if not a.startswith("--devices=")]
    if "--devices" in kept:
        at = kept.index("--devices")
        del kept[at : at + 2]
    return kept


def _path(command: Explore, scene: "Scene") -> "Trajectory":
    from worldstereo.errors import InputRefused
    from worldstereo.trajectory import PRESETS, Trajectory
    from worldstereo.world import default_view, pivot_distance

    if command.trajectory in PRESETS:
        start = default_view(scene)
        path = Trajectory.preset(
            command.trajectory,
            start,
            distance=pivot_distance(scene, start),
            amount=command.amount,
            frames=command.frames,
            up=scene.up,
        )
        return path.scaled(command.width, command.height)
    file = Path(command.trajectory)
    if not file.is_file():
        raise InputRefused(
            f"{command.trajectory}: is neither a preset ({', '.join(PRESETS)}) nor a JSON file."
        )
    return Trajectory.from_json(file.read_text()).scaled(command.width, command.height)


def _write_all(
    world: "World", folder: Path, formats: tuple[str, ...], asked: Mapping[str, Any] | None = None
) -> None:
    """Each format takes what it knows of the options."""
    from worldstereo.exports import exporters, write

    folder.mkdir(parents=True, exist_ok=True)
    known = exporters()
    for name in formats:
        path = folder / f"{world.scene.name or 'world'}-{name}{known[name].suffix}"
        offered = known[name].options
        options = {key: value for key, value in (asked or {}).items() if key in offered}
        write(world.scene, name, path, on_step=_progress, **options)
        print(path)


def _check_formats(formats: tuple[str, ...]) -> None:
    """Before the long work: a wrong format is said at once."""
    from worldstereo.exports import exporter

    for name in formats:
        exporter(name)


def _print_facts(scene: "Scene") -> None:
    given = sum(view.step == 0 for view in scene.views)
    what = "view" if given == 1 else "views"
    print(f"{scene.name}: {given} given {what}, {len(scene.views) - given} generated")
    print(f"{len(scene.cloud):,} points; unit {scene.unit:.3g}; {len(scene.clips)} clips")
    for notice in scene.notices:
        print(notice)


def _progress(step: int, total: int, message: str) -> None:
    """A bar on a terminal, lines in a log."""
    if sys.stderr.isatty():
        filled = round(24 * step / total) if total > 0 else 0
        end = "\n" if total > 0 and step >= total else ""
        bar = f"[{'#' * filled}{'.' * (24 - filled)}] {message[:90]}"
        print(f"\r\x1b[K{bar}", end=end, file=sys.stderr, flush=True)
    logging.getLogger(__name__).info("%s (%d/%d)", message, step, total)
