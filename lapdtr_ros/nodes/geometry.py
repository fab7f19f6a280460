"""Publishes where a camera was and what it saw, picture by picture, to those who listen."""

from __future__ import annotations

from geometry_msgs.msg import PoseStamped, TransformStamped
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

from lapdtr_ros import camera_messages, conversions, qos, topics
from lapdtr_ros.datasets.pictures import Picture


class GeometryPublisher:
    """Sends the geometry of pictures that come with one; nothing is sent when nobody listens.

    Args:
        node: node to publish from.
        fleet: namespace of the fleet.
        stream: camera stream.
        vehicle: the vehicle that carries the camera.
        event_callbacks: of the publishers, e.g. to learn of new listeners.

    Publishers:
        <fleet>/<stream>/camera_info (sensor_msgs/CameraInfo): for the picture that the model takes.
        <fleet>/<stream>/mount (geometry_msgs/TransformStamped): body of the camera in the LiDAR.
        <fleet>/<vehicle>/lidar_pose (geometry_msgs/PoseStamped): the LiDAR in ``map``.
        <fleet>/<stream>/image (sensor_msgs/Image): the picture that the model takes.
    """

    def __init__(
        self,
        node: Node,
        fleet: str,
        stream: str,
        vehicle: str,
        event_callbacks: PublisherEventCallbacks | None = None,
    ) -> None:
        self._lidar = conversions.lidar_frame(vehicle)
        self._info, self._mount, self._pose = (
            node.create_publisher(kind, topic, qos.geometry(), event_callbacks=event_callbacks)
            for kind, topic in (
                (CameraInfo, topics.camera_info(fleet, stream)),
                (TransformStamped, topics.mount(fleet, stream)),
                (PoseStamped, topics.lidar_pose(fleet, vehicle)),
            )
        )
        self._image = node.create_publisher(Image, topics.image(fleet, stream), qos.pictures())

    @property
    def heard(self) -> bool:
        """Whether somebody listens to all of it."""
        publishers = (self._info, self._mount, self._pose)
        return all(publisher.get_subscription_count() for publisher in publishers)

    def publish(self, picture: Picture) -> None:
        """Send the geometry of a picture before the picture itself."""
        camera, pose, stamp = picture.camera, picture.lidar_pose, picture.stamp_ns
        if camera is None or pose is None:
            return
        size = picture.pixels.shape[0], picture.pixels.shape[1]
        if self._info.get_subscription_count():
            self._info.publish(
                conversions.camera_info_to_msg(camera.intrinsic, size, stamp, picture.frame_id)
            )
        if self._mount.get_subscription_count():
            self._mount.publish(
                conversions.mount_to_msg(camera.extrinsic, stamp, self._lidar, picture.frame_id)
            )
        if self._pose.get_subscription_count():
            self._pose.publish(conversions.lidar_pose_to_msg(pose, stamp))
        if self._image.get_subscription_count():
            self._image.publish(
                camera_messages.picture_to_msg(picture.pixels, stamp, picture.frame_id)
            )
