"""A recording of a fleet: ros2 launch lapdtr_ros recorder.launch.py bag:=DIRECTORY."""

from lapdtr_ros.launching import recorder_description


def generate_launch_description():
    return recorder_description()
