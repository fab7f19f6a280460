"""Install the part of lapdtr_ros that needs no ROS: `pip install .`.

The ROS package is built by colcon from CMakeLists.txt, which does not read this file.
"""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name='lapdtr_ros',
    version='0.1.0',
    description='Energy-aware, layer-adaptive partitioning of vision models over vehicles',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    author='The lapdtr_ros authors',
    python_requires='>=3.10,<3.14',
    packages=find_packages(include=['lapdtr_ros', 'lapdtr_ros.*']),
    package_data={'lapdtr_ros': ['**/*']},
    exclude_package_data={'': ['*.pyc', '__pycache__/*']},
    install_requires=[
        'jinja2',
        'numpy',
        'pillow',
        'pydantic>=2',
        'pyyaml',
        'rich',
        'safetensors',
        'timm>=1',
        'torch>=2.4',
        'torchvision>=0.19',
        'tqdm',
    ],
    extras_require={
        'onnx': ['onnx', 'onnxruntime', 'onnxscript'],
        'bags': ['rosbags'],
        'generate': ['panda3d', 'panda3d-gltf'],
        'carla': ['carla'],
        'jetson': ['jetson-stats'],
        'nvml': ['nvidia-ml-py'],
        'view': ['rerun-sdk'],
        'test': ['hypothesis', 'pytest', 'pytest-timeout', 'shapely'],
    },
    entry_points={'console_scripts': ['lapdtr = lapdtr_ros.cli:main']},
)
