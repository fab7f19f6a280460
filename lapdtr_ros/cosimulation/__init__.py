"""Co-simulation with a CARLA server, free of ROS."""
