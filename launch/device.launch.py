"""One device of a fleet: ros2 launch lapdtr_ros device.launch.py scenario:=FILE device:=NAME."""

from lapdtr_ros.launching import device_description


def generate_launch_description():
    return device_description()
