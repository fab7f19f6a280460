"""The recorder node in a process of its own, beside publishers that the test plays."""

import pytest

pytest.importorskip('lapdtr_ros.msg')
pytest.importorskip('rosbags')

from std_msgs.msg import String

from lapdtr_ros import qos
from lapdtr_ros.bringup import ProcessFailedError, ProcessGroup, recorder_process
from lapdtr_ros.msg import StreamStatus
from lapdtr_ros.nodes.bags.files import BagReader


def test_everything_of_the_fleet_is_in_the_bag(peer, tmp_path):
    early = peer.node.create_publisher(StreamStatus, '/fleet/stream_status', qos.stream_status())
    other = peer.node.create_publisher(String, '/elsewhere/text', 10)
    early.publish(StreamStatus(stream='latched'))
    with ProcessGroup([recorder_process(tmp_path / 'bag', 'fleet')], tmp_path / 'logs') as group:
        peer.wait(lambda: early.get_subscription_count() == 1)
        late = peer.node.create_publisher(String, '/fleet/late', qos.frames())
        peer.wait(lambda: late.get_subscription_count() == 1)
        for number in range(20):
            late.publish(String(data=str(number)))
            other.publish(String(data='not mine'))
        assert late.wait_for_all_acked()
        codes = group.stop()
    assert codes == {'recorder': 0}
    with BagReader(tmp_path / 'bag') as reader:
        assert '/elsewhere/text' not in reader.topics
        messages = list(reader.messages(['/fleet/late', '/fleet/stream_status']))
    texts = [msg.data for topic, _, msg in messages if topic == '/fleet/late']
    assert texts == [str(number) for number in range(20)]
    assert [m.stream for t, _, m in messages if t == '/fleet/stream_status'] == ['latched']


def test_a_recording_is_never_overwritten(tmp_path):
    (tmp_path / 'bag').mkdir()
    with ProcessGroup([recorder_process(tmp_path / 'bag', '')], tmp_path / 'logs') as group:
        group.process('recorder').wait(30)
        with pytest.raises(ProcessFailedError, match='exists; give a new directory'):
            group.check()
