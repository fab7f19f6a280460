"""Publishes what a connected vehicle perceives, under the topics of a fleet with live cameras."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from geometry_msgs.msg import PoseStamped, TransformStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import BatteryState, CameraInfo, Image

from lapdtr_ros import camera_messages, conversions, qos, topics
from lapdtr_ros.datasets.opv2v import AgentFrame
from lapdtr_ros.msg import ObjectArray


class VehiclePublisher:
    """The topics of one vehicle.

    Args:
        node: node to publish from.
        fleet: namespace of the fleet.
        vehicle: name of the vehicle.
        cameras: numbers of its cameras.

    Publishers:
        <fleet>/<vehicle>/odometry, lidar_pose, objects, battery_state
        <fleet>/<vehicle>/camera<number>/image, camera_info, mount
    """

    def __init__(self, node: Node, fleet: str, vehicle: str, cameras: range) -> None:
        self._vehicle = vehicle
        self._lidar = conversions.lidar_frame(vehicle)

        def create(kind: type, topic: str) -> Publisher:
            return node.create_publisher(kind, topic, qos.geometry())

        self._odometry = create(Odometry, topics.odometry(fleet, vehicle))
        self._pose = create(PoseStamped, topics.lidar_pose(fleet, vehicle))
        self._objects = create(ObjectArray, topics.objects(fleet, vehicle))
        self._battery = create(BatteryState, topics.battery_state(fleet, vehicle))
        streams = {number: f'{vehicle}/camera{number}' for number in cameras}
        self._cameras = {
            number: (
                stream,
                create(CameraInfo, topics.camera_info(fleet, stream)),
                create(TransformStamped, topics.mount(fleet, stream)),
                node.create_publisher(Image, topics.image(fleet, stream), qos.pictures()),
            )
            for number, stream in streams.items()
        }

    def publish(
        self, frame: AgentFrame, images: Mapping[int, np.ndarray], speed: float, stamp_ns: int
    ) -> None:
        """Send everything of one moment; the pictures last, when their geometry is on its way."""
        own = frame.true_ego_pos
        self._odometry.publish(conversions.odometry_to_msg(own, speed, stamp_ns, self._vehicle))
        self._pose.publish(conversions.lidar_pose_to_msg(frame.lidar_pose, stamp_ns))
        labels = frame.vehicles.values()
        self._objects.publish(conversions.objects_to_msg(labels, stamp_ns, self._vehicle))
        for number, (stream, info, mount, picture) in self._cameras.items():
            camera, pixels = frame.cameras[number], images[number]
            size = pixels.shape[0], pixels.shape[1]
            info.publish(conversions.camera_info_to_msg(camera.intrinsic, size, stamp_ns, stream))
            mount.publish(conversions.mount_to_msg(camera.extrinsic, stamp_ns, self._lidar, stream))
            picture.publish(camera_messages.picture_to_msg(pixels, stamp_ns, stream))

    def publish_battery(self, soc: float, capacity_j: float, power_w: float, stamp_ns: int) -> None:
        """Send the state of the vehicle's battery."""
        msg = conversions.battery_to_msg(soc, capacity_j, power_w, stamp_ns)
        self._battery.publish(msg)
