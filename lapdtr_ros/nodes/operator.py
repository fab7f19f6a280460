"""A user's hand: sets parameters of running nodes, as ``ros2 param set`` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.client import Client
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future

from lapdtr_ros import topics


class Operator(Node):
    """Client of the parameters of a fleet's nodes.

    Args:
        fleet: namespace of the fleet.
    """

    def __init__(self, fleet: str = '') -> None:
        super().__init__('operator', namespace=topics.namespace(fleet))
        self._fleet = topics.namespace(fleet).rstrip('/')
        self._clients_by_node: dict[str, Client] = {}

    def connect(self, node: str) -> None:
        """Look for a node's parameters early, so that the first change is not delayed.

        Args:
            node: name below the fleet's namespace, e.g. ``planner`` or ``cav_0/camera0/source``.
        """
        if node not in self._clients_by_node:
            self._clients_by_node[node] = self.create_client(
                SetParametersAtomically, f'{self._fleet}/{node}/set_parameters_atomically'
            )

    def set_parameters_of(self, node: str, values: Mapping[str, Any]) -> Future:
        """Ask a node to change parameters, all at once; a refusal is logged with its reason."""
        self.connect(node)
        messages: list[ParameterMessage] = [
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
        request = SetParametersAtomically.Request(parameters=messages)
        future = self._clients_by_node[node].call_async(request)
        future.add_done_callback(self._on_answer)
        return future

    def _on_answer(self, future: Future) -> None:
        result = future.result().result
        if not result.successful:
            self.get_logger().error(f'parameters were refused: {result.reason}')
