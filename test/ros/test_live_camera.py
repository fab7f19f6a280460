"""A source on a camera topic: both picture types, silence and policies that do not fit."""

import io

import numpy as np
import pytest
import yaml
from PIL import Image as PillowImage

pytest.importorskip('lapdtr_ros.msg')

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import QoSProfile, ReliabilityPolicy

from lapdtr_ros import camera_messages, qos, topics
from lapdtr_ros.bringup import ProcessGroup, ProcessSpec, source_process

STREAM = 'cav_0/camera0'
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def scenario(directory, topic):
    path = directory / 'scenario.yaml'
    content = {
        'name': 'camera',
        'model': {'name': 'test_vit@64x96+detection', 'weights': 'random:0'},
        'devices': {'cav_0': {'class': 'edge_server'}},
        'streams': {STREAM: {'source': 'cav_0', 'image_topic': topic}},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def told(messages):
    return [status.message for message in messages for status in message.status]


@pytest.mark.parametrize('kind', ['raw', 'png'])
def test_both_picture_types_are_taken(peer, tmp_path, kind):
    topic = '/cav_0/camera0/image' + ('' if kind == 'raw' else '/compressed')
    diagnostics = peer.collect(DiagnosticArray, topics.DIAGNOSTICS, qos.diagnostics())
    if kind == 'raw':
        msg = camera_messages.picture_to_msg(PIXELS, 5, 'camera')
    else:
        buffer = io.BytesIO()
        PillowImage.fromarray(PIXELS).save(buffer, 'PNG')
        msg = camera_messages.compressed_picture_to_msg(buffer.getvalue(), 'png', 5, 'camera')
    camera = peer.node.create_publisher(type(msg), topic, qos.camera())
    with ProcessGroup([source_process(scenario(tmp_path, topic), '', STREAM)], tmp_path / 'logs'):
        peer.wait(
            lambda: any(topic in text and '1 publishers' in text for text in told(diagnostics))
        )
        camera.publish(msg)
        peer.wait(lambda: 'no plan yet' in told(diagnostics))


def test_policies_that_do_not_fit_are_named(peer, tmp_path):
    topic = '/cav_0/camera0/image'
    spec = source_process(scenario(tmp_path, topic), '', STREAM)
    strict = {f'qos_overrides.{topic}.subscription.reliability': 'reliable'}
    spec = ProcessSpec(spec.name, spec.executable, spec.namespace, {**spec.parameters, **strict})
    diagnostics = peer.collect(DiagnosticArray, topics.DIAGNOSTICS, qos.diagnostics())
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    msg = camera_messages.picture_to_msg(PIXELS, 5, 'camera')
    peer.node.create_publisher(type(msg), topic, best_effort)
    with ProcessGroup([spec], tmp_path / 'logs'):
        peer.wait(
            lambda: any(
                topic in text and 'RELIABILITY' in text and 'qos_overrides' in text
                for text in told(diagnostics)
            )
        )
