"""How fast a cooperative scene is read: five vehicles with four cameras each, in OPV2V's layout.

A scene of OPV2V's picture size is generated once (or a real one is given) and played through
`prefetch`: YAML by the C loader, pictures decoded by threads in the background while the reader
goes on. OPV2V was recorded at 10 Hz, so 10 snapshots per second play it live. *Measured*.

    python benchmarks/reading.py --scene out/reading [--workers 2]
    python benchmarks/reading.py --dataset OPV2V/test
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import yaml
from tqdm import tqdm

from lapdtr_ros.datasets.generator import generate
from lapdtr_ros.datasets.opv2v import CAMERAS, Scenario, open_dataset, prefetch
from lapdtr_ros.datasets.scene import SceneConfig

GOAL_HZ = 10.0
SCENE = SceneConfig(seed=3, road='crossing', frames=20, vehicles=5, width=800, height=600)


def play(scene: Scenario, workers: int, round_name: str) -> dict[str, float]:
    """Read every snapshot once and throw it away."""
    pictures = 0
    began = time.perf_counter()
    snapshots = prefetch(scene, CAMERAS, workers=workers)
    for snapshot in tqdm(snapshots, round_name, len(scene.timestamps), disable=None):
        pictures += sum(len(agent.images) for agent in snapshot.agents.values())
    seconds = time.perf_counter() - began
    return {
        'snapshots_per_s': len(scene.timestamps) / seconds,
        'pictures_per_s': pictures / seconds,
        'pictures': pictures,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--scene', type=Path, help='folder of the generated scene, made if missing')
    source.add_argument('--dataset', type=Path, help='OPV2V directory; its first scene is read')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--rounds', type=int, default=3)
    options = parser.parse_args()
    if options.dataset:
        scene = open_dataset(options.dataset)[0]
    else:
        scene = Scenario(generate(SCENE, options.scene, workers=1))
    rounds = [play(scene, options.workers, f'round {n + 1}') for n in range(options.rounds)]
    rate = statistics.median(r['snapshots_per_s'] for r in rounds)
    pictures = statistics.median(r['pictures_per_s'] for r in rounds)
    print(
        f'{len(scene.agents)} vehicles, {len(scene.timestamps)} snapshots, '
        f'{rounds[0]["pictures"]} pictures: {rate:.1f} snapshots/s, {pictures:.0f} pictures/s '
        f'with {options.workers} threads; goal {GOAL_HZ:g} snapshots/s'
    )
    summary = {
        'snapshots_per_s': rate,
        'pictures_per_s': pictures,
        'agents': len(scene.agents),
        'snapshots': len(scene.timestamps),
        'workers': options.workers,
        'rounds': rounds,
        'yaml_c_loader': yaml.__with_libyaml__,
        'goal_snapshots_per_s': GOAL_HZ,
        'reached': rate >= GOAL_HZ,
        'level': 'measured',
    }
    print(json.dumps(summary))


if __name__ == '__main__':
    main()
