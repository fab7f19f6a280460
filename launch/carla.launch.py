"""A CARLA server, a fleet and its evaluation: ros2 launch lapdtr_ros carla.launch.py."""

from lapdtr_ros.launching import carla_description


def generate_launch_description():
    return carla_description()
