"""Take the pictures of the documentation: report, terminal and live view of the demo.

    tools/run python tools/screenshots.py [--out docs/images]

It needs ``out/demo`` (``make demo``), Chromium, and for the live view the native viewer of rerun
with ``xvfb-run`` and a Vulkan driver (on Debian: xvfb, mesa-vulkan-drivers).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from lapdtr_ros.bringup import ProcessGroup, fleet_processes, view_process
from lapdtr_ros.commands.run import isolated_environment, run_scenario
from lapdtr_ros.evaluation.live_view import VIEW_PORT
from lapdtr_ros.scenario import load_scenario

DEMO = Path('out/demo')
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
WIDTH = 1200
TALLEST = 6000
SETTLED_S = 25.0  # until the fleet streams and curves have something to show


def main() -> int:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('docs/images'))
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None or not (DEMO / 'report.html').is_file():
        print(f'needs one of {", ".join(BROWSERS)}, and {DEMO}: run make demo', file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    report = (DEMO / 'report.html').read_text(encoding='utf-8')
    for name, sections in {
        'report': ('headline', 'timeline', 'energy'),
        'report_pictures': ('pictures',),
    }.items():
        page_picture(browser, only(report, sections), options.out / f'{name}.png')
    live_pictures(browser, options.out)
    view_picture(options.out / 'view.png')
    return 0


def only(report: str, sections: tuple[str, ...]) -> str:
    """The report with some of its sections."""
    hidden = ''.join(f':not(#{section})' for section in sections)
    return report.replace('</head>', f'<style>section{hidden} {{display: none}}</style></head>')


def page_picture(browser: str, page: str, path: Path) -> None:
    """Picture of a page, cut to what is on it."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / 'page.html'
        file.write_text(page, encoding='utf-8')
        screenshot(browser, file.as_uri(), path, TALLEST)
    pixels = np.asarray(Image.open(path).convert('RGB'))
    used = np.flatnonzero((pixels != pixels[-1, 0]).any(axis=(1, 2)))
    Image.fromarray(pixels[: used[-1] + 20]).quantize(128).save(path, optimize=True)
    print(path, flush=True)


def screenshot(browser: str, address: str, path: Path, height: int, *options: str) -> None:
    """Have the browser draw an address without a window."""
    words = ['--headless', '--no-sandbox', '--hide-scrollbars', f'--window-size={WIDTH},{height}']
    command = [browser, *words, *options, f'--screenshot={path}', address]
    subprocess.run(command, check=True, capture_output=True, timeout=180)


def live_pictures(browser: str, out: Path) -> None:
    """The terminal beside the demo's fleet."""
    scenario = load_scenario(DEMO / 'scenario.yaml')
    environment = isolated_environment()
    os.environ.update(environment)
    processes = fleet_processes(scenario)
    with (
        tempfile.TemporaryDirectory() as logs,
        ProcessGroup(processes, Path(logs), environment),
    ):
        time.sleep(SETTLED_S)
        page_picture(browser, terminal_page(), out / 'watch.png')


def view_picture(path: Path) -> None:
    """The live view at the end of a short run; drawn twice as large, so that text is smooth."""
    scenario = load_scenario(DEMO / 'scenario.yaml')
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / 'view.rrd'
        view = view_process('', VIEW_PORT, saved)
        run_scenario(scenario, Path(folder) / 'run', frames=8, view=view)
        viewer = ['rerun', str(saved), '--renderer', 'vulkan', '--window-size', '1600x900']
        screen = ['xvfb-run', '-a', '-s', '-screen 0 1700x1000x24']
        command = [*screen, *viewer, '--screenshot-to', str(path)]
        subprocess.run(command, check=True, capture_output=True, timeout=180)
    picture = Image.open(path).convert('RGB').resize((1600, 900), Image.Resampling.LANCZOS)
    picture.quantize(192).save(path, optimize=True)
    print(path, flush=True)


def terminal_page() -> str:
    """What ``lapdtr watch`` shows after a few seconds, as a page."""
    from rich.console import Console

    from lapdtr_ros.nodes.watch import overview_after

    console = Console(record=True, width=110, file=open(os.devnull, 'w'))  # noqa: SIM115
    console.print(overview_after('', 8.0))
    return console.export_html(inline_styles=True)


if __name__ == '__main__':
    sys.exit(main())
