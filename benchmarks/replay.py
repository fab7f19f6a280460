"""A scene as a recording, and the recording through the live nodes: what is lost, and how fast.

A generated scene with three vehicles is evaluated directly; written as a rosbag2 recording; read
back; and replayed twice through real nodes over DDS. Everything is *measured* on this machine.

    python benchmarks/replay.py [--moments 3] [--model NAME --weights FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from lapdtr_ros.commands.evaluate import DetectedScene, LiveScene, run_live
from lapdtr_ros.datasets.generator import generate
from lapdtr_ros.datasets.opv2v import open_dataset
from lapdtr_ros.datasets.scene import SceneConfig
from lapdtr_ros.evaluation.average_precision import ApResult, EvaluationProtocol
from lapdtr_ros.evaluation.detected import score
from lapdtr_ros.evaluation.detector import Detector, detect_scenarios
from lapdtr_ros.evaluation.live import boxes_difference
from lapdtr_ros.nodes.bags.scenes import bag_to_scene, scene_to_bag
from lapdtr_ros.perception.boxes import CAMERA_RANGE
from lapdtr_ros.perception.fusion import FusionSettings

MODEL = 'vit_small_patch14_focus:blocks.8@308x420+detection'
WEIGHTS = Path(__file__).parents[1] / 'weights' / 'vit_small_focus_detection.safetensors'
PROTOCOL = EvaluationProtocol('generated/replay', limits=CAMERA_RANGE)
SETTINGS = FusionSettings()
PERIOD_S = 0.1


def detect(path: Path, detector: Detector) -> DetectedScene:
    """What the unsplit model finds in a scene."""
    scene = open_dataset(path)[0]
    return DetectedScene(scene, tuple(detect_scenarios(detector, [scene], PROTOCOL)))


def figures(result: ApResult) -> tuple[float, ...]:
    """AP at all thresholds."""
    return tuple(result.ap.values())


def replay(detected: DetectedScene, out: Path, options: argparse.Namespace) -> LiveScene:
    """One replay through the live nodes."""
    return run_live(detected, out, options.model, str(options.weights), PROTOCOL, settings=SETTINGS)


def replays(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    config = SceneConfig(
        seed=options.seed, frames=options.moments, vehicles=3, width=512, height=384
    )
    original = generate(config, directory / 'scene')
    began = time.perf_counter()
    scene_to_bag(open_dataset(original)[0], directory / 'bag')
    written = time.perf_counter()
    imported = bag_to_scene(directory / 'bag', directory / 'back')
    read = time.perf_counter()
    detector = Detector.load(options.model, str(options.weights))
    direct = detect(original, detector)
    expected = figures(score(direct.frames, PROTOCOL, SETTINGS, alone=False))
    runs = []
    for number in range(2):
        print(f'replay {number + 1} of 2', flush=True)
        runs.append(replay(detect(imported.path, detector), directory / f'run{number}', options))
    first, second = (run.detections for run in runs)
    frames = [frame for run in runs for frame in run.record.frames]
    finished = [frame for frame in frames if frame.outcome == 'finished']
    seconds = [span(run) for run in runs]
    accuracy = runs[0].record.accuracy
    assert accuracy is not None
    return {
        'ap_equal': expected == (accuracy.ap30, accuracy.ap50, accuracy.ap70),
        'ap50_direct': expected[1],
        'ap50_replayed': accuracy.ap50,
        'identical': first.keys() == second.keys()
        and all(boxes_difference(first[stamp], second[stamp]) == 0.0 for stamp in first),
        'real_time_factor': round(options.moments * PERIOD_S / min(seconds), 4),
        'dropped': len(frames) - len(finished) + imported.incomplete,
        'frames': len(frames),
        'boxes': sum(len(boxes) for boxes in first.values()),
        'write_moments_per_s': round(options.moments / (written - began), 1),
        'read_moments_per_s': round(options.moments / (read - written), 1),
    }


def span(run: LiveScene) -> float:
    """Seconds from the first picture that was sent to the last result."""
    sent = [frame.sent_s for frame in run.record.frames]
    done = [frame.sent_s + frame.latency_s for frame in run.record.frames]
    return max(done) - min(sent)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--moments', type=int, default=3)
    parser.add_argument('--seed', type=int, default=17)
    parser.add_argument('--model', default=MODEL)
    parser.add_argument('--weights', default=WEIGHTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = replays(Path(directory), options)
    print(json.dumps({**result, 'level': 'measured'}))


if __name__ == '__main__':
    main()
