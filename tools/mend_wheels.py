"""Make a virtual environment with the ROS 2 wheels a full ROS prefix.

The wheels lack two things that building messages needs:

* Their CMake files name the include folders of the machine that built the wheels
  (`/opt/python/cp3XX-cp3XX/...`), so every message package fails when CMake generates. Both
  folders are replaced with those of the running interpreter.
* They have no `local_setup` scripts. With them the environment behaves like `/opt/ros/<distro>`:
  `source .venv/local_setup.bash && colcon build` works, and colcon makes the `install/setup.bash`
  of the workspace source them.

Running it again changes nothing. Run it with the Python of the environment:
`.venv/bin/python tools/mend_wheels.py`.
"""

from __future__ import annotations

import re
import shlex
import sys
import sysconfig
from pathlib import Path

import numpy as np

_NUMPY_INCLUDE = re.compile(r'/opt/python/[^/;"]+/lib/[^/;"]+/site-packages/numpy/[^;"]*include')
_PYTHON_INCLUDE = re.compile(r'/opt/python/[^/;"]+/include/python3\.\d+')

_LOCAL_SETUP = """\
# Made by tools/mend_wheels.py: put the ROS 2 wheels of this environment in front.
_lapdtr_prefix={prefix}
case ":$PATH:" in *":$_lapdtr_prefix/bin:"*) ;; *)
  export PATH="$_lapdtr_prefix/bin:$PATH" ;;
esac
case ":${{AMENT_PREFIX_PATH:-}}:" in *":$_lapdtr_prefix:"*) ;; *)
  export AMENT_PREFIX_PATH="$_lapdtr_prefix${{AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}}" ;;
esac
case ":${{CMAKE_PREFIX_PATH:-}}:" in *":$_lapdtr_prefix:"*) ;; *)
  export CMAKE_PREFIX_PATH="$_lapdtr_prefix${{CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}}" ;;
esac
unset _lapdtr_prefix
"""


def mend_cmake(prefix: Path, python_include: str, numpy_include: str) -> int:
    """Rewrite the include folders in the CMake files of all packages.

    Args:
        prefix: Environment whose `share/<package>/cmake` holds the exported targets.
        python_include: Folder of `Python.h`.
        numpy_include: Folder of `numpy/arrayobject.h`.

    Returns:
        Number of files that changed.
    """
    changed = 0
    for path in sorted(prefix.glob('share/*/cmake/*.cmake')):
        text = path.read_text(encoding='utf-8')
        mended = _NUMPY_INCLUDE.sub(lambda _: numpy_include, text)
        mended = _PYTHON_INCLUDE.sub(lambda _: python_include, mended)
        if mended != text:
            path.write_text(mended, encoding='utf-8')
            changed += 1
    return changed


def write_local_setup(prefix: Path) -> None:
    """Write `local_setup.sh`, `.bash` and `.zsh` into the environment.

    Args:
        prefix: Environment that becomes a ROS prefix.
    """
    text = _LOCAL_SETUP.format(prefix=shlex.quote(str(prefix)))
    for shell in ('sh', 'bash', 'zsh'):
        (prefix / f'local_setup.{shell}').write_text(text, encoding='utf-8')


def main() -> int:
    """Mend the environment of the running interpreter."""
    prefix = Path(sys.prefix)
    changed = mend_cmake(prefix, sysconfig.get_path('include'), np.get_include())
    write_local_setup(prefix)
    print(f'ROS wheels: include folders mended in {changed} files')
    return 0


if __name__ == '__main__':
    sys.exit(main())
