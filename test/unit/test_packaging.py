"""The files that build, install and describe the package agree with each other."""

from __future__ import annotations

import ast
import itertools
import re
import stat
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROS_SUFFIXES = ('_msgs', '_interfaces')
ROS_MODULES = {'rclpy', 'launch', 'launch_ros', 'cv_bridge'}
# `import x` against the name to install, where they differ.
DISTRIBUTIONS = {
    'PIL': 'pillow',
    'yaml': 'pyyaml',
    'gltf': 'panda3d-gltf',
    'direct': 'panda3d',
    'pynvml': 'nvidia-ml-py',
    'jtop': 'jetson-stats',
    'rerun': 'rerun-sdk',
}
# Packages beside their users: doubles for tests, and benchmarks that import each other.
OWN = {'lapdtr_ros', 'doubles', *(path.stem for path in (ROOT / 'benchmarks').glob('*.py'))}
# Part of a requirement: jinja2 brings markupsafe, ROS brings the rest.
INDIRECT = {'ament_index_python', 'domain_coordinator', 'markupsafe'}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def cmake() -> str:
    return re.sub(r'#.*', '', read('CMakeLists.txt'))


@pytest.fixture(scope='module')
def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def setup_arguments() -> dict[str, object]:
    """Arguments of setup() that are plain values."""
    call = ast.parse(read('setup.py')).body[-1].value
    return {
        keyword.arg: ast.literal_eval(keyword.value)
        for keyword in call.keywords
        if keyword.arg in {'version', 'install_requires', 'extras_require', 'entry_points'}
    }


def requirement_names(text: str) -> set[str]:
    lines = (line.partition('#')[0].strip() for line in text.splitlines())
    return {re.split(r'[<>=;\s]', line)[0].lower() for line in lines if line}


def imported_modules(folder: str) -> set[str]:
    """First part of every absolute import below a folder, of the standard library or not."""
    found = set()
    for path in (ROOT / folder).rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition('.')[0])
    return found


def is_ros(module: str) -> bool:
    return module in ROS_MODULES or module.endswith(ROS_SUFFIXES)


def test_every_message_is_built(cmake: str) -> None:
    built = re.findall(r'"msg/(\w+)\.msg"', cmake)
    assert built == sorted(path.stem for path in (ROOT / 'msg').glob('*.msg'))


def test_message_packages_are_declared_where_they_are_used(
    cmake: str, manifest: ElementTree.Element
) -> None:
    used = {
        package
        for path in (ROOT / 'msg').glob('*.msg')
        for package in re.findall(r'^(\w+)/\w+', path.read_text(encoding='utf-8'), re.MULTILINE)
    }
    dependencies = re.search(r'DEPENDENCIES ([\w\s]+?)\)', cmake)
    assert dependencies is not None
    linked = set(dependencies.group(1).split())
    assert used <= linked
    assert linked == {element.text for element in manifest.findall('depend')}
    assert linked <= set(re.findall(r'find_package\((\w+) REQUIRED\)', cmake))


def test_every_node_has_a_program_and_every_program_a_node(cmake: str) -> None:
    loop = re.search(r'foreach\(name ([\w\s]+?)\)', cmake)
    assert loop is not None
    modules = {
        path.stem
        for path in (ROOT / 'lapdtr_ros' / 'nodes').glob('*.py')
        if re.search(r'^def main\(', path.read_text(encoding='utf-8'), re.MULTILINE)
    }
    assert set(loop.group(1).split()) == modules


def test_the_command_has_its_entry_point() -> None:
    assert re.search(r'^def main\(', read('lapdtr_ros/cli.py'), re.MULTILINE)
    assert setup_arguments()['entry_points'] == {
        'console_scripts': ['lapdtr = lapdtr_ros.cli:main']
    }


@pytest.mark.parametrize('folder', ['config', 'launch'])
def test_data_folders_are_installed(cmake: str, folder: str) -> None:
    installed = re.findall(r'install\(DIRECTORY ([\w\s]+?) DESTINATION share/', cmake)
    assert folder in ' '.join(installed).split()
    assert any(path.is_file() for path in (ROOT / folder).rglob('*'))


def test_modules_are_installed_after_the_messages(cmake: str) -> None:
    messages = cmake.index('rosidl_generate_interfaces(')
    assert messages < cmake.index('DIRECTORY ${PROJECT_NAME}/') < cmake.index('ament_package()')


def test_all_files_name_one_version(manifest: ElementTree.Element) -> None:
    version = manifest.findtext('version')
    newest = re.search(r'^## \[(\d+\.\d+\.\d+)\]', read('CHANGELOG.md'), re.MULTILINE)
    module = re.search(r"^__version__ = '(.+)'", read('lapdtr_ros/__init__.py'), re.MULTILINE)
    assert newest is not None
    assert module is not None
    assert {newest.group(1), module.group(1), setup_arguments()['version']} == {version}


def test_every_imported_ros_package_is_declared(manifest: ElementTree.Element) -> None:
    declared = {e.text for tag in ('depend', 'exec_depend') for e in manifest.findall(tag)}
    used = {name for folder in ('lapdtr_ros', 'launch') for name in imported_modules(folder)}
    assert {name for name in used if is_ros(name)} <= declared


@pytest.mark.parametrize('folder', ['lapdtr_ros', 'test', 'benchmarks'])
def test_every_imported_library_is_a_requirement(folder: str) -> None:
    files = ['run', 'torch', 'no_deps', 'optional', *([] if folder == 'lapdtr_ros' else ['dev'])]
    required = requirement_names(''.join(read(f'requirements/{name}.txt') for name in files))
    used = imported_modules(folder) - OWN - INDIRECT - sys.stdlib_module_names
    names = {DISTRIBUTIONS.get(name, name) for name in used if not is_ros(name)}
    assert {name.lower() for name in names} <= required


def test_pip_installs_what_the_environment_of_the_makefile_has() -> None:
    arguments = setup_arguments()
    extras = [needs for name, needs in arguments['extras_require'].items() if name != 'test']
    named = requirement_names('\n'.join(itertools.chain(arguments['install_requires'], *extras)))
    optional = requirement_names(read('requirements/optional.txt'))
    needed = named - {'torch', 'torchvision'} - optional
    assert needed == requirement_names(read('requirements/run.txt'))
    assert optional <= named


@pytest.mark.parametrize('name', ['run', 'torch', 'no_deps', 'dev', 'ros'])
def test_every_requirement_has_one_tested_version(name: str) -> None:
    pinned = requirement_names(read('requirements/constraints.txt'))
    required = {
        line
        for line in requirement_names(read(f'requirements/{name}.txt'))
        if line != 'numpy'  # pinned in ros.txt: a system ROS keeps its own
    }
    assert required <= pinned


def test_no_file_names_a_registry() -> None:
    files = [*(ROOT / 'requirements').iterdir(), ROOT / 'Makefile', ROOT / 'setup.py']
    text = ''.join(path.read_text(encoding='utf-8') for path in files)
    assert not re.search(r'https?://|--(extra-)?index-url|--find-links', text)


def test_readme_names_only_targets_that_exist() -> None:
    targets = set(re.findall(r'^([a-z]+):', read('Makefile'), re.MULTILINE))
    code = ''.join(re.findall(r'`[^`]+`', read('README.md')))
    named = set(re.findall(r'\bmake ([a-z]+)\b', code))
    assert {'demo', 'test'} <= named <= targets


@pytest.mark.parametrize('name', ['.ci/run', 'tools/run', 'tools/lapdtr'])
def test_scripts_can_be_executed(name: str) -> None:
    assert (ROOT / name).stat().st_mode & stat.S_IXUSR
