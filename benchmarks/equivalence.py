"""Split equals unsplit: every family, every cut, float32.

For each model the undivided network of the library gives the reference. Then, for every cut, a
sender's stage gives the features before the cut and a receiver's stage, loaded by itself from the
weight file, finishes the frame. The last line is one JSON object:

    max_abs_diff  largest difference of any output value, any model, any cut
    models        number of models
    cuts          number of cuts over all models
    live_...      the same through two device processes over DDS, for one model of each family

All figures are *measured*.

    python benchmarks/equivalence.py [--models NAME ...] [--live-models NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import yaml
from rclpy.executors import SingleThreadedExecutor

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.bringup import ProcessGroup, device_process
from lapdtr_ros.commands.run import isolated_environment
from lapdtr_ros.execution.frames import Feature, Packet
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.models.errors import WeightsError
from lapdtr_ros.models.facts import CLASSIFIER, model_spec
from lapdtr_ros.models.preprocess import picture_to_input
from lapdtr_ros.models.weights import load_undivided, load_units, save_weights
from lapdtr_ros.msg import DeviceTelemetry, FeatureMap, FrameResult, PartitionPlan, StreamStatus
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision

MODELS = (
    'vit_tiny_patch16_224',
    'vit_small_patch16_224',
    'deit_tiny_patch16_224',
    'deit_small_patch16_224',
    'deit_tiny_distilled_patch16_224',
    'deit3_small_patch16_224',
    'deit3_base_patch16_224',
    'swin_tiny_patch4_window7_224',
    'tiny_vit_5m_224',
    'tiny_vit_11m_224',
    'efficientvit_m0',
    'efficientvit_m5',
    'edgevit_xxs',
    'edgevit_s',
    'vit_small_patch14_focus',
)

LIVE_MODELS = (
    'vit_tiny_patch16_224',
    'deit_tiny_distilled_patch16_224',
    'swin_tiny_patch4_window7_224',
    'tiny_vit_5m_224',
    'efficientvit_m0',
    'edgevit_xxs',
    'vit_small_patch14_focus',
)

STREAM = 'near/camera0'

Split = Callable[[str, str, int, np.ndarray], np.ndarray]
"""Runs (model, weights, cut, picture) on two devices and returns the output [1, ...]."""


class LocalSplit:
    """Runs both stages in this process; the sender computes the features of all cuts once."""

    def __init__(self) -> None:
        self._model = ''
        self._features: list[np.ndarray] = []

    def __call__(self, model: str, weights: str, cut: int, picture: np.ndarray) -> np.ndarray:
        """Finish the frame in a receiver that holds the units behind the cut only."""
        if self._model != model:
            self._model, self._features = model, self._cut_features(model, weights, picture)
        units = len(self._features)
        return StageRunner(model, weights, cut, units).run(self._features[cut])

    @staticmethod
    def _cut_features(model: str, weights: str, picture: np.ndarray) -> list[np.ndarray]:
        units = len(model_spec(model).unit_names)
        sender = StageRunner(model, weights, 0, units)
        features = [picture]
        for unit in range(units - 1):
            features.append(sender.run_range(features[unit], unit, unit + 1))
        return features


class LiveSplit:
    """Runs both stages in device processes; every cut is a plan of its own."""

    def __init__(self, folder: Path) -> None:
        import rclpy

        content = {
            'name': 'equivalence',
            'model': {'name': LIVE_MODELS[0], 'weights': 'random:0'},
            'devices': {'near': {'class': 'vehicle_pc'}, 'far': {'class': 'vehicle_pc'}},
            'links': [{'between': ['near', 'far'], 'class': 'ethernet'}],
            'streams': {STREAM: {'source': 'near', 'image_topic': 'unused'}},
        }
        scenario = folder / 'scenario.yaml'
        scenario.write_text(yaml.safe_dump(content), encoding='utf-8')
        environment = isolated_environment()
        os.environ.update(environment)
        specs = [device_process(scenario, '', name) for name in ('near', 'far')]
        self._group = ProcessGroup(specs, folder / 'logs', environment)
        rclpy.init()
        self._node = rclpy.create_node('equivalence')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._epoch = 0

    def __enter__(self) -> LiveSplit:
        node = self._node
        self._group.__enter__()
        self._results: list[FrameResult] = []
        self._ready: dict[str, tuple[int, ...]] = {}
        self._plans = node.create_publisher(PartitionPlan, topics.plan(''), qos.plan())
        self._status = node.create_publisher(
            StreamStatus, topics.stream_status(''), qos.stream_status()
        )
        self._features = {
            name: node.create_publisher(FeatureMap, topics.features('', name), qos.frames())
            for name in ('near', 'far')
        }
        result = topics.result('', STREAM)
        node.create_subscription(FrameResult, result, self._results.append, qos.frames())
        for name in self._features:
            node.create_subscription(
                DeviceTelemetry, topics.telemetry('', name), self._on_telemetry, qos.telemetry()
            )
        return self

    def __exit__(self, *_: object) -> None:
        import rclpy

        self._group.stop()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def __call__(self, model: str, weights: str, cut: int, picture: np.ndarray) -> np.ndarray:
        """Send one picture through the plan that splits at ``cut``."""
        self._epoch += 1
        units = len(model_spec(model).unit_names)
        stages = [Stage('near', 0, cut)] if cut else []
        stages.append(Stage('far', cut, units))
        plan = Plan(STREAM, model, 'near', 'near', tuple(stages))
        decision = StreamDecision(plan, weights, 0.0, 0.0, 0.0)
        fleet_plan = FleetPlan(self._epoch, 'benchmark', 'exact', 'split', {STREAM: decision})
        stamp = self._node.get_clock().now().to_msg()
        self._plans.publish(conversions.fleet_plan_to_msg(fleet_plan, stamp))
        self._wait(lambda: all(self._epoch in self._ready.get(s.device, ()) for s in stages))
        first = self._features[stages[0].device]
        self._wait(lambda: first.get_subscription_count() > 0)
        feature = Feature(STREAM, self._epoch, self._epoch, 0, Packet.of_array(picture, 'raw'))
        first.publish(conversions.feature_to_msg(feature))
        self._wait(lambda: self._results)
        self._status.publish(StreamStatus(stream=STREAM, oldest_epoch=self._epoch))
        return conversions.result_from_msg(self._results.pop()).packet.to_array()

    def _on_telemetry(self, msg: DeviceTelemetry) -> None:
        self._ready[msg.device] = tuple(msg.ready_epochs)

    def _wait(self, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._executor.spin_once(timeout_sec=0.05)
            self._group.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f'nothing for {timeout_s:g} s at plan {self._epoch}')


def max_abs_diff(model: str, weights: str, split: Split) -> tuple[float, int]:
    """Compare a model's split outputs with its undivided output.

    Returns:
        The largest absolute difference over all cuts, and the number of cuts.
    """
    spec = model_spec(model)
    picture = np.random.default_rng(0).integers(0, 256, spec.picture_shape, dtype=np.uint8)
    expected = undivided_output(model, weights, picture)
    worst = 0.0
    for cut in range(len(spec.unit_names)):
        output = split(model, weights, cut, picture)
        worst = max(worst, float(np.abs(output - expected).max()))
    return worst, len(spec.unit_names)


def undivided_output(model: str, weights: str, picture: np.ndarray) -> np.ndarray:
    """Output of the library's own forward; all units at once where we brought the head."""
    spec = model_spec(model)
    if spec.head == CLASSIFIER:
        network = load_undivided(model, weights)
    else:
        network = load_units(model, 0, len(spec.unit_names), weights)
    with torch.inference_mode():
        return network(torch.from_numpy(picture_to_input(picture, spec))).numpy()


def weight_file(model: str, folder: Path) -> str:
    """Real weights for the model that a package carries them for, else saved random ones."""
    if model_spec(model).family == 'focus':
        try:
            load_units(model, 0, 1, 'focus')
        except WeightsError as error:
            print(f'{model}: random weights, because {error}')
        else:
            return 'focus'
    path = folder / 'weights.safetensors'
    save_weights(load_units(model, 0, len(model_spec(model).unit_names), 'random:0'), path)
    return str(path)


def compare(models: Iterable[str], split: Split) -> tuple[float, int]:
    """Compare models one after the other and print a row for each.

    Returns:
        The largest absolute difference and the number of cuts.
    """
    worst, cuts = 0.0, 0
    print(f'{"model":36} {"cuts":>5} {"max |diff|":>12} {"seconds":>8}')
    for model in models:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            difference, count = max_abs_diff(model, weight_file(model, Path(folder)), split)
        seconds = time.perf_counter() - begin
        print(f'{model:36} {count:5} {difference:12.3g} {seconds:8.1f}', flush=True)
        worst, cuts = max(worst, difference), cuts + count
    return worst, cuts


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--models', nargs='+', default=MODELS, metavar='NAME')
    parser.add_argument('--live-models', nargs='*', default=LIVE_MODELS, metavar='NAME')
    options = parser.parse_args()
    worst, cuts = compare(options.models, LocalSplit())
    figures = {'max_abs_diff': worst, 'models': len(options.models), 'cuts': cuts}
    if options.live_models:
        print('over DDS, each stage in a device process:')
        with tempfile.TemporaryDirectory() as folder, LiveSplit(Path(folder)) as live:
            worst, cuts = compare(options.live_models, live)
        figures |= {
            'live_max_abs_diff': worst,
            'live_models': len(options.live_models),
            'live_cuts': cuts,
        }
    print(json.dumps({**figures, 'level': 'measured'}))


if __name__ == '__main__':
    main()
