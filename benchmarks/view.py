"""What it costs to look at a run: frames per second with and without the live view.

The fleet of the demo, six cameras through the shipped detector on this machine's cores, runs in
turns without a view, with the page of rerun served, and with the view written to a file. The first
frames, in which all processes come up, do not count. The report is written after a run and so slows
no frame; what it takes is set against the time of the frames. All *measured*.

The last line is one JSON object::

    view_cost         share of the throughput that the served view takes, median over rounds (goal
                      0.1 at most); below zero: less than the spread of the runs
    saved_view_cost   the same for the view in a file
    report_share      time of the report over the time of the frames

    python benchmarks/view.py [--rounds 3] [--frames 18]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from lapdtr_ros.bringup import VerbSpec, view_process
from lapdtr_ros.commands.demo import prepare
from lapdtr_ros.commands.run import run_scenario
from lapdtr_ros.evaluation.live_view import VIEW_PORT
from lapdtr_ros.evaluation.report import write_report
from lapdtr_ros.evaluation.run_record import RunRecord
from lapdtr_ros.scenario import Scenario

PLAIN, SERVED, SAVED = 'without', 'served', 'saved'


def frames_per_second(record: RunRecord, skip: int) -> float:
    """Throughput of a run without its first frames."""
    ends = sorted(frame.sent_s + frame.latency_s for frame in record.frames)[skip:]
    return (len(ends) - 1) / (ends[-1] - ends[0])


def view(way: str, folder: Path) -> VerbSpec | None:
    """The process that shows a run, if any."""
    if way == PLAIN:
        return None
    return view_process('', VIEW_PORT, folder / 'run.rrd' if way == SAVED else None)


def measure(scenario: Scenario, way: str, frames: int, folder: Path) -> tuple[float, float]:
    """Frames per second, and the time of the report over the time of the frames."""
    record = run_scenario(scenario, folder, frames=frames, view=view(way, folder))
    rate = frames_per_second(record, skip=len(scenario.file.streams))
    began = time.perf_counter()
    write_report(record, folder / 'report.html', [])
    took_s = time.perf_counter() - began
    print(f'{way}: {rate:.2f} frames/s, report {took_s:.2f} s', flush=True)
    return rate, took_s * rate / len(record.frames)


def main() -> None:
    """Measure and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--frames', type=int, default=18, help='per camera')
    options = parser.parse_args()
    rates: dict[str, list[float]] = {way: [] for way in (PLAIN, SERVED, SAVED)}
    reports = []
    with tempfile.TemporaryDirectory() as temporary:
        scenario = prepare(Path(temporary) / 'scene')
        for number in range(options.rounds):
            for way, found in rates.items():
                folder = Path(temporary) / f'{way}{number}'
                rate, share = measure(scenario, way, options.frames, folder)
                found.append(rate)
                reports.append(share)
    costs = {
        way: statistics.median(1 - r / p for r, p in zip(rates[way], rates[PLAIN], strict=True))
        for way in (SERVED, SAVED)
    }
    print(
        json.dumps(
            {
                'view_cost': round(costs[SERVED], 3),
                'saved_view_cost': round(costs[SAVED], 3),
                'report_share': round(statistics.median(reports), 4),
                'frames_per_s': {way: [round(r, 2) for r in found] for way, found in rates.items()},
                'frames': options.frames * len(scenario.file.streams),
                'rounds': options.rounds,
                'level': 'measured',
            }
        )
    )


if __name__ == '__main__':
    main()
