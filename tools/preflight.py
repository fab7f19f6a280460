"""Check that this machine can build and run lapdtr_ros, and name exactly what is missing.

As root on Debian or Ubuntu the missing packages are installed. Everybody else gets the line to
run. The script needs nothing but the standard library:
`python3 tools/preflight.py --ros wheels`.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PYTHON = f'{sys.version_info.major}.{sys.version_info.minor}'
_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 10), (3, 13)
_ROS_DISTRO = 'jazzy'
_ROS_PACKAGES = (
    'ament_cmake',
    'ament_cmake_python',
    'ament_cmake_ros',
    'rclpy',
    'rosidl_default_generators',
    'rosidl_default_runtime',
    'sensor_msgs',
    'std_msgs',
    'visualization_msgs',
)
_EGL_PLATFORM_SURFACELESS_MESA = 0x31DD
_MESA_PACKAGES = ('libegl1', 'libegl-mesa0', 'libgl1', 'libgl1-mesa-dri', 'libgles2')


@dataclass(frozen=True)
class Missing:
    """Something this machine lacks.

    Attributes:
        what: What is missing and what it is needed for.
        packages: Names of the Debian packages that bring it; empty if none does.
        remedy: What to do where no package helps.
    """

    what: str
    packages: tuple[str, ...] = ()
    remedy: str = ''


def find_missing(ros: str) -> list[Missing]:
    """Check the machine.

    Args:
        ros: `system` if a sourced ROS 2 is used, `wheels` if it comes from Python wheels.

    Returns:
        All that is missing; empty if the machine is ready.
    """
    checks = (_check_python, _check_compilers, _check_headless_rendering)
    ros_check = _check_system_ros if ros == 'system' else _check_ros_wheels
    return [missing for check in (*checks, ros_check) for missing in check()]


def _check_python() -> Iterator[Missing]:
    if not _OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON:
        yield Missing(
            f'Python 3.10 to 3.13 ({sys.executable} is {_PYTHON})',
            remedy='name another one: make setup PYTHON=python3.12',
        )
    if not all(importlib.util.find_spec(name) for name in ('venv', 'ensurepip')):
        yield Missing(
            f'the venv module of Python {_PYTHON}',
            packages=(f'python{_PYTHON}-venv',),
        )
    header = Path(sysconfig.get_path('include')) / 'Python.h'
    if not header.is_file():
        what = f'the headers of Python {_PYTHON} to build the messages ({header})'
        if sys.base_prefix == '/usr':
            yield Missing(what, packages=(f'python{_PYTHON}-dev',))
        else:
            yield Missing(what, remedy='reinstall this Python with its headers')


def _check_compilers() -> Iterator[Missing]:
    compilers = {
        'C': (os.environ.get('CC', 'cc'), 'gcc', 'clang'),
        'C++': (os.environ.get('CXX', 'c++'), 'g++', 'clang++'),
    }
    for language, commands in compilers.items():
        if not any(shutil.which(command) for command in commands):
            yield Missing(
                f'a {language} compiler to build the messages', packages=('build-essential',)
            )


def _check_headless_rendering() -> Iterator[Missing]:
    for library in ('libEGL.so.1', 'libGL.so.1'):
        if not _loads(library):
            yield Missing(f'{library} to render scenes', packages=_MESA_PACKAGES)
            return
    # A driver may be missing, or crash, only when a display is opened: try it in a child process.
    child = [sys.executable, __file__, '--open-display']
    if subprocess.run(child, capture_output=True, check=False).returncode != 0:
        yield Missing('an EGL driver that renders without a screen', packages=_MESA_PACKAGES)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _open_display() -> bool:
    """Open an EGL display without a screen, as the scene renderer does."""
    egl = ctypes.CDLL('libEGL.so.1')
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b'eglGetPlatformDisplayEXT')
    if not address:
        return False
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
    )
    display = prototype(address)(_EGL_PLATFORM_SURFACELESS_MESA, None, None)
    egl.eglInitialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return bool(display) and bool(egl.eglInitialize(display, None, None))


def _check_ros_wheels() -> Iterator[Missing]:
    libc, version = platform.libc_ver()
    machine = f'{platform.system()} {platform.machine()} {libc} {version}'
    new_enough = libc == 'glibc' and tuple(map(int, version.split('.'))) >= (2, 28)
    if platform.system() != 'Linux' or platform.machine() != 'x86_64' or not new_enough:
        yield Missing(
            f'ROS 2 {_ROS_DISTRO}: its wheels are for Linux x86_64 with glibc 2.28 or newer '
            f'(this is {machine})',
            remedy=f'install ROS 2 {_ROS_DISTRO} and source it before make',
        )


def _check_system_ros() -> Iterator[Missing]:
    distro = os.environ['ROS_DISTRO']
    if distro != _ROS_DISTRO:
        yield Missing(
            f'ROS 2 {_ROS_DISTRO} (ROS_DISTRO is {distro!r})',
            remedy=f'source ROS 2 {_ROS_DISTRO}, or start a shell without ROS to use its wheels',
        )
        return
    prefixes = [Path(p) for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    for name in _ROS_PACKAGES:
        if not any((prefix / 'share' / name / 'package.xml').is_file() for prefix in prefixes):
            package = f'ros-{distro}-{name.replace("_", "-")}'
            yield Missing(f'the ROS package {name}', packages=(package,))
    if importlib.util.find_spec('rclpy') is None:
        yield Missing(
            f'rclpy for Python {_PYTHON} ({sys.executable})',
            remedy='use the Python that ROS was built for: make setup PYTHON=/usr/bin/python3',
        )


def _apt_packages(missing: list[Missing]) -> list[str]:
    return sorted({package for entry in missing for package in entry.packages})


def _install(packages: list[str]) -> None:
    environment = {**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'}
    for arguments in (['update'], ['install', '-y', '--no-install-recommends', *packages]):
        subprocess.run(
            ['apt-get', '-qq', *arguments],
            env=environment,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )


def _report(missing: list[Missing]) -> None:
    print('This machine lacks:', file=sys.stderr)
    for entry in missing:
        print(f'  - {entry.what}' + (f'; {entry.remedy}' if entry.remedy else ''), file=sys.stderr)
    packages = _apt_packages(missing)
    if packages:
        line = f'sudo apt-get update && sudo apt-get install -y {" ".join(packages)}'
        print(f'On Debian and Ubuntu:\n  {line}', file=sys.stderr)


def main() -> int:
    """Check the machine and mend it where that is possible.

    Returns:
        0 if the machine is ready, 1 if something is missing.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--ros', choices=('system', 'wheels'), default='wheels')
    parser.add_argument('--open-display', action='store_true', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open_display:
        return 0 if _open_display() else 1

    missing = find_missing(arguments.ros)
    packages = _apt_packages(missing)
    if packages and os.geteuid() == 0 and shutil.which('apt-get'):
        print(f'Installing what this machine lacks: {" ".join(packages)}', flush=True)
        try:
            _install(packages)
        except subprocess.CalledProcessError as error:
            print(f'apt-get failed: {error}', file=sys.stderr)
        missing = find_missing(arguments.ros)
    if missing:
        _report(missing)
        return 1
    distro = Path('/opt/ros') / _ROS_DISTRO
    if arguments.ros == 'wheels' and distro.is_dir():
        print(f'Note: {distro} exists but is not sourced; ROS comes from wheels instead.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
