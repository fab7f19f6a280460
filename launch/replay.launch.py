"""A recording to accuracy: ros2 launch lapdtr_ros replay.launch.py bag:=DIR model:=M weights:=W."""

from lapdtr_ros.launching import replay_description


def generate_launch_description():
    return replay_description()
