"""The fusion of a fleet's detections: ros2 launch lapdtr_ros fusion.launch.py scenario:=FILE."""

from lapdtr_ros.launching import fusion_description


def generate_launch_description():
    return fusion_description()
