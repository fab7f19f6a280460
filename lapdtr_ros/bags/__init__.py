"""rosbag2 recordings: files that every ROS 2 tool reads, and OPV2V scenes inside them."""
