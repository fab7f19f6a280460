"""Generator of cooperative driving scenes in the layout of OPV2V.

The pictures are rendered headless, labels are exact. LiDAR files are not written: the result is a
camera-only copy as the format allows. `lapdtr_ros.datasets.visibility` documents the rule that
stands in for LiDAR hits. One call makes one scenario, `generate_dataset` makes splits for training:

    python -m lapdtr_ros.datasets.generator --out scenes --seed 1 --road crossing --frames 40
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lapdtr_ros.datasets.opv2v import PROTOCOL_NAME, SPLITS, Scenario
from lapdtr_ros.datasets.opv2v_writer import write_agent_frame, write_data_protocol
from lapdtr_ros.datasets.render import Renderer
from lapdtr_ros.datasets.roads import ROADS
from lapdtr_ros.datasets.scene import GeneratorError, Scene, SceneConfig, build_scene
from lapdtr_ros.errors import LapdtrError

DEFAULT_WORKERS = 2

_CHUNK = 5  # frames that one process renders before it reports
_SEEDS_PER_SPLIT = 30_000
_SEEDS_PER_DATASET = 100_000


def generate(
    config: SceneConfig,
    out_dir: str | Path,
    progress: bool = True,
    workers: int = DEFAULT_WORKERS,
) -> Path:
    """Generate one scenario.

    The scenario appears under its name when it is complete; until then it is a hidden folder that
    readers skip and the next attempt replaces. A complete scenario of the same configuration is
    left as it is.

    Args:
        config: what the scene shall be.
        out_dir: dataset or split folder, created when missing.
        progress: whether to show a bar.
        workers: rendering processes. More than one needs a main module that can be imported (code
            under `if __name__ == '__main__'`); one renders in this process.

    Returns:
        Folder of the scenario.

    Raises:
        GeneratorError: If something to render with is missing, or another scenario has the name.
    """
    target = Path(out_dir) / config.name
    if _is_done(config, target):
        return target
    scene = build_scene(config)
    frames = range(config.frames)
    chunks = [list(frames[i : i + _CHUNK]) for i in range(0, config.frames, _CHUNK)]
    with (
        _partial_folder(target) as partial,
        _executor(workers) as run,
        tqdm(total=config.frames, unit='frame', desc=config.name, disable=not progress) as bar,
    ):
        for count in run(_write_frames, [(scene, chunk, partial) for chunk in chunks]):
            bar.update(count)
        write_data_protocol(partial, scene.protocol())
    return target


def generate_dataset(
    out_dir: str | Path,
    split_sizes: Mapping[str, int],
    frames_per_scene: int = 10,
    seed: int = 0,
    *,
    width: int = 400,
    height: int = 300,
    vehicles: tuple[int, int] = (2, 5),
    roads: Sequence[str] = ROADS,
    progress: bool = True,
    workers: int = DEFAULT_WORKERS,
) -> Path:
    """Generate splits of many short scenes that share no seed, and so no road and no traffic.

    Roads take turns; the number of connected vehicles and the density of the traffic are drawn.
    Started again after an interruption, it makes what is missing.

    Args:
        out_dir: root of the dataset.
        split_sizes: number of scenes of each split, for example `{'train': 80, 'test': 10}`.
        frames_per_scene: number of timestamps of each, 0.1 s apart.
        seed: of the whole dataset, 0 to 9999.
        width: of the pictures, pixels.
        height: of the pictures, pixels.
        vehicles: least and largest number of connected vehicles.
        roads: road kinds to use.
        progress: whether to show a bar.
        workers: rendering processes, see `generate`; each makes whole scenes.

    Returns:
        Root of the dataset.

    Raises:
        GeneratorError: See `generate`; also for unknown splits and a seed out of range.
    """
    if not 0 <= seed < 10_000:
        raise GeneratorError(f'seed is {seed}; a dataset takes 0 to 9999')
    root = Path(out_dir)
    jobs = []
    for split, size in split_sizes.items():
        for index in range(size):
            scene_seed = _scene_seed(seed, split, index, size)
            rng = np.random.default_rng((scene_seed, 1))
            config = SceneConfig(
                seed=scene_seed,
                road=roads[index % len(roads)],
                frames=frames_per_scene,
                vehicles=int(rng.integers(vehicles[0], vehicles[1] + 1)),
                width=width,
                height=height,
                density=round(float(rng.uniform(0.6, 1.3)), 3),
            )
            jobs.append((config, root / split))
    missing = [job for job in jobs if not _is_done(job[0], job[1] / job[0].name)]
    bar = tqdm(total=len(missing), unit='scene', desc=root.name, disable=not progress)
    with _executor(workers) as run, bar:
        for _ in run(_write_scene, missing):
            bar.update()
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(description='Generate one scenario in the layout of OPV2V.')
    defaults = SceneConfig(seed=0)
    parser.add_argument('--out', required=True, help='dataset or split folder')
    parser.add_argument('--seed', type=int, default=defaults.seed)
    parser.add_argument('--road', choices=ROADS, default=defaults.road)
    parser.add_argument('--frames', type=int, default=defaults.frames, help='0.1 s apart')
    parser.add_argument('--vehicles', type=int, default=defaults.vehicles, help='connected ones')
    parser.add_argument('--width', type=int, default=defaults.width, help='pixels')
    parser.add_argument('--height', type=int, default=defaults.height, help='pixels')
    parser.add_argument('--density', type=float, default=defaults.density, help='of the traffic')
    parser.add_argument('--workers', type=int, default=DEFAULT_WORKERS, help='processes')
    options = vars(parser.parse_args(arguments))
    out, workers = options.pop('out'), options.pop('workers')
    try:
        print(generate(SceneConfig(**options), out, workers=workers))
    except LapdtrError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


def _scene_seed(seed: int, split: str, index: int, size: int) -> int:
    if split not in SPLITS[:3]:
        raise GeneratorError(f'split {split!r} is unknown; use {", ".join(SPLITS[:3])}')
    if size > _SEEDS_PER_SPLIT:
        raise GeneratorError(f'split {split!r} has {size} scenes; use at most {_SEEDS_PER_SPLIT}')
    return seed * _SEEDS_PER_DATASET + SPLITS.index(split) * _SEEDS_PER_SPLIT + index


def _is_done(config: SceneConfig, target: Path) -> bool:
    """Whether the scenario is there already.

    Raises:
        GeneratorError: If another one has its name.
    """
    if not target.exists():
        return False
    there = Scenario(target).protocol() if (target / PROTOCOL_NAME).is_file() else {}
    if there.get('generator') == dataclasses.asdict(config):
        return True
    raise GeneratorError(
        f'{target} exists with another configuration; use another seed or folder, or delete it'
    )


@contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """Give a hidden folder that takes the name of the target when all went well."""
    partial = target.with_name(f'.{target.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


# Work of the rendering processes

_Run = Callable[[Callable[..., int], Iterable[tuple[Any, ...]]], Iterator[int]]


@contextmanager
def _executor(workers: int) -> Iterator[_Run]:
    """Give a function that runs jobs, in this process or in several, and yields their results."""
    if workers < 1:
        raise GeneratorError(f'workers is {workers}; use 1 or more')
    if workers == 1:
        yield lambda function, jobs: (function(*job) for job in jobs)
        return
    context = multiprocessing.get_context('spawn')  # OpenGL does not survive a fork
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_single_threaded)
    try:
        yield lambda function, jobs: _in_pool(pool, function, jobs)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_pool(
    pool: Executor, function: Callable[..., int], jobs: Iterable[tuple[Any, ...]]
) -> Iterator[int]:
    futures: list[Future[int]] = [pool.submit(function, *job) for job in jobs]
    try:
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise GeneratorError(
            'a rendering process died, perhaps for lack of memory; use fewer workers'
        ) from error


def _single_threaded() -> None:
    """Keep the software renderer from starting a thread per core in every process."""
    os.environ['LP_NUM_THREADS'] = '1'


@lru_cache(maxsize=1)
def _renderer(width: int, height: int) -> Renderer:
    return Renderer(width, height)


def _write_frames(scene: Scene, frames: Iterable[int], folder: Path) -> int:
    renderer = _renderer(scene.config.width, scene.config.height)
    renderer.load(scene)
    count = 0
    for frame in frames:
        for vehicle in scene.connected:
            pictures = dict(enumerate(renderer.pictures(frame, vehicle)))
            agent_dir = folder / str(scene.ids[vehicle])
            write_agent_frame(agent_dir, scene.agent_frame(frame, vehicle), pictures)
        count += 1
    return count


def _write_scene(config: SceneConfig, split_dir: Path) -> int:
    scene = build_scene(config)
    with _partial_folder(split_dir / config.name) as partial:
        count = _write_frames(scene, range(config.frames), partial)
        write_data_protocol(partial, scene.protocol())
    return count


if __name__ == '__main__':
    sys.exit(main())
