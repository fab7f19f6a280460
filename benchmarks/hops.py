"""What a hop over ROS 2 costs: one process, two stages over ROS 2, two stages over torch + gloo.

All three run in turns on this machine, batch 1, one thread per process:

* one process: the whole model as one stage, called in a loop;
* ROS 2: the project's own nodes (source, two devices, planner) in processes over DDS;
* torch: ``torch.distributed.pipelining`` (GPipe, 8 micro-batches of one picture) over gloo.

Latency is taken with one frame in flight, throughput with several. Everything is *measured*.

    python benchmarks/hops.py [--rounds 3] [--frames 80]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from lapdtr_ros.bringup import Intervention
from lapdtr_ros.commands.run import run_scenario
from lapdtr_ros.datasets.noise import write_noise_scene
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.scenario import load_scenario

MODELS = {'deit_tiny': 'deit_tiny_patch16_224', 'deit_small': 'deit_small_patch16_224'}
WEIGHTS = 'random:0'
STREAM = 'near/camera0'
MICRO_BATCHES = 8


def one_process(model: str, frames: int, answers: multiprocessing.Queue) -> None:
    """Median seconds per frame of the whole model as one stage."""
    from lapdtr_ros.execution.stage import StageRunner

    runner = StageRunner(model, WEIGHTS, 0, len(profile_model(model)), threads=1)
    runner.warm_up()
    picture = np.zeros(profile_model(model).picture_shape, np.uint8)
    times = []
    for _ in range(frames):
        began = time.perf_counter()
        runner.run(picture)
        times.append(time.perf_counter() - began)
    answers.put(statistics.median(times))


def torch_rank(model: str, rank: int, port: int, frames: int, answers: object) -> None:
    """One of two pipeline ranks; rank 0 answers with pictures per second."""
    import torch
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    from lapdtr_ros.models.weights import load_units

    torch.set_num_threads(1)
    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    dist.init_process_group('gloo', rank=rank, world_size=2)
    profile = profile_model(model)
    half = balanced_cut(model)
    units = load_units(model, *((0, half) if rank == 0 else (half, len(profile))), WEIGHTS)
    stage = PipelineStage(units, rank, 2, torch.device('cpu'))
    schedule = ScheduleGPipe(stage, MICRO_BATCHES)
    height, width, _ = profile.picture_shape
    batch = torch.zeros(MICRO_BATCHES, 3, height, width)
    with torch.inference_mode():
        steps = max(2, frames // MICRO_BATCHES)
        times = []
        for step in range(steps + 1):
            dist.barrier()
            began = time.perf_counter()
            schedule.step(*([batch] if rank == 0 else []))
            dist.barrier()
            if step:
                times.append((time.perf_counter() - began) / MICRO_BATCHES)
    if rank == 0:
        answers.put(1.0 / statistics.median(times))
    dist.destroy_process_group()


def balanced_cut(model: str) -> int:
    """The cut that leaves both halves the most equal number of FLOPs."""
    flops = [unit.flops for unit in profile_model(model).units]
    return min(range(1, len(flops)), key=lambda cut: max(sum(flops[:cut]), sum(flops[cut:])))


def in_process(target: object, *arguments: object) -> float:
    """Run a function in a fresh process and return the number it answers with."""
    context = multiprocessing.get_context('spawn')
    answers = context.Queue()
    process = context.Process(target=target, args=(*arguments, answers))
    process.start()
    answer = answers.get(timeout=300)
    process.join()
    return answer


def torch_pipeline(model: str, frames: int) -> float:
    """Pictures per second of two ranks over gloo."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context('spawn')
    answers = context.Queue()
    ranks = [
        context.Process(target=torch_rank, args=(model, rank, port, frames, answers))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    rate = answers.get(timeout=300)
    for process in ranks:
        process.join()
    return rate


def ros_scenario(model: str, folder: Path) -> Path:
    """Two equal devices that must share the model evenly, and a short stream of pictures."""
    write_noise_scene(folder / 'scene', frames=8)
    content = {
        'name': 'hops',
        'model': {'name': model, 'weights': WEIGHTS},
        'devices': {'near': {'class': 'vehicle_pc'}, 'far': {'class': 'vehicle_pc'}},
        'links': [{'between': ['near', 'far'], 'class': 'ethernet'}],
        'streams': {STREAM: {'source': 'near', 'dataset': 'scene'}},
        'requirements': {
            'weights': {'energy': 0.0, 'latency': 0.0, 'period': 1.0},
            'pictures_stay': True,
        },
        'execution': {'max_in_flight': 1},
    }
    path = folder / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content), encoding='utf-8')
    return path


def over_ros(model: str, frames: int) -> tuple[float, float]:
    """Median latency with one frame in flight, and frames per second with several."""
    with tempfile.TemporaryDirectory() as folder:
        scenario = load_scenario(ros_scenario(model, Path(folder)))
        change = Intervention(frames // 2, f'{STREAM}/source', {'max_in_flight': 4})
        record = run_scenario(
            scenario, Path(folder), frames=frames + frames // 2, interventions=[change]
        )
    assert all(len(frame.stages) == 2 for frame in record.frames), 'not split in two'
    # The first frames warm caches, and those around the change are under way in both modes.
    alone = [frame.latency_s for frame in record.frames[5 : frames // 2 - 1]]
    several = record.frames[frames // 2 + 5 :]
    ends = sorted(frame.sent_s + frame.latency_s for frame in several)
    return statistics.median(alone), (len(ends) - 1) / (ends[-1] - ends[0])


def measure(model: str, rounds: int, frames: int) -> dict[str, float]:
    """All three ways in turns; ratios within a round, medians over rounds."""
    added, against_one, against_torch, rows = [], [], [], []
    for number in range(rounds):
        alone_s = in_process(one_process, model, frames)
        latency_s, rate = over_ros(model, frames)
        torch_rate = torch_pipeline(model, frames)
        added.append((latency_s - alone_s) * 1e3)
        against_one.append(rate * alone_s)
        against_torch.append(rate / torch_rate)
        rows.append((alone_s * 1e3, latency_s * 1e3, rate, torch_rate))
        print(
            f'{model} round {number + 1}: one process {alone_s * 1e3:.1f} ms '
            f'({1 / alone_s:.1f}/s), ROS 2 {latency_s * 1e3:.1f} ms and {rate:.1f}/s, '
            f'torch {torch_rate:.1f}/s',
            flush=True,
        )
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    return {
        'added_latency_ms': round(statistics.median(added), 2),
        'throughput_vs_one_process': round(statistics.median(against_one), 3),
        'throughput_vs_torch_pipelining': round(statistics.median(against_torch), 3),
        'one_process_ms': round(medians[0], 2),
        'ros_latency_ms': round(medians[1], 2),
        'ros_frames_per_s': round(medians[2], 2),
        'torch_frames_per_s': round(medians[3], 2),
    }


def main() -> None:
    """Measure and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--frames', type=int, default=80)
    options = parser.parse_args()
    figures: dict[str, object] = {
        name: measure(model, options.rounds, options.frames) for name, model in MODELS.items()
    }
    figures |= {'level': 'measured', 'rounds': options.rounds, 'frames': options.frames}
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
