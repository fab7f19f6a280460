"""The planner of a fleet: ros2 launch lapdtr_ros planner.launch.py scenario:=FILE."""

from lapdtr_ros.launching import planner_description


def generate_launch_description():
    return planner_description()
