"""A vehicle: ros2 launch lapdtr_ros device.launch.py vehicle:=cav_0 device:=orin_nano."""

from lapdtr_ros.launching import device_description


def generate_launch_description():
    return device_description()
