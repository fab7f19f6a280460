"""A whole scenario on this machine: ros2 launch lapdtr_ros fleet.launch.py scenario:=FILE."""

from lapdtr_ros.launching import fleet_description


def generate_launch_description():
    return fleet_description()
