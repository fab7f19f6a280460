"""Class files: the shipped ones are complete, bad ones are explained."""

import math

import pytest
import yaml

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.planning.classes import (
    ClassFileError,
    config_directory,
    device_from_class,
    link_from_class,
    load_device_class,
    load_link_class,
)
from lapdtr_ros.planning.fleet import Fleet
from lapdtr_ros.planning.validation import validate_fleet

DEVICES = {
    'raspberry_pi_4',
    'raspberry_pi_5',
    'jetson_nano',
    'jetson_tx2',
    'jetson_xavier_nx',
    'jetson_orin_nano',
    'jetson_agx_orin',
    'vehicle_pc',
    'edge_server',
}
LINKS = {'its_g5', 'c_v2x', '5g', '5g_down', 'wifi5', 'wifi6', 'ethernet'}


def figure(value, mark='G'):
    return {'value': value, 'mark': mark, 'source': 'somewhere public'}


@pytest.fixture
def good():
    return {
        'description': 'a board',
        'boundary': 'wall',
        'default_rate': 'fp32',
        'rates': {
            'fp32': {
                'gflop_per_s': figure(10),
                'overhead_ms': figure(2),
                'active_w': figure(7.5),
            }
        },
        'conv_factor': figure(0.5),
        'memory_mb': figure(100),
        'idle_w': figure(3),
        'codec_mb_per_s': figure(50),
    }


@pytest.fixture
def write(tmp_path):
    def write_class(content, folder='devices'):
        (tmp_path / folder).mkdir(exist_ok=True)
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (tmp_path / folder / 'board.yaml').write_text(text, encoding='utf-8')
        return tmp_path

    return write_class


def test_shipped_directories_hold_the_documented_classes():
    root = config_directory()
    assert {path.stem for path in (root / 'devices').glob('*.yaml')} == DEVICES
    assert {path.stem for path in (root / 'links').glob('*.yaml')} == LINKS


@pytest.mark.parametrize('name', sorted(DEVICES))
def test_every_shipped_device_makes_a_valid_device_at_every_rate(name):
    loaded = load_device_class(name)
    for rate in loaded.rates:
        device = device_from_class(loaded, 'd', rate=rate)
        validate_fleet(Fleet({'d': device}))
        assert device.device_class == name
    assert loaded.default_rate == 'fp32'


@pytest.mark.parametrize('name', sorted(LINKS))
def test_every_shipped_link_makes_a_valid_link(name):
    devices = {n: device_from_class(load_device_class('jetson_nano'), n) for n in 'ab'}
    link = link_from_class(load_link_class(name), 'a', 'b')
    validate_fleet(Fleet(devices, {('a', 'b'): link}))
    assert link.link_class == name


def test_units_are_converted(write, good):
    device = device_from_class(load_device_class('board', write(good)), 'x', battery_j=5e4, soc=0.5)
    assert device.flops_per_s == 1e10
    assert device.overhead_s == pytest.approx(0.002)
    assert device.memory_bytes == 1e8
    assert device.codec_bytes_per_s == 5e7
    assert (device.idle_w, device.active_w, device.conv_factor) == (3, 7.5, 0.5)
    assert (device.battery_j, device.soc) == (5e4, 0.5)


def test_radio_energy_per_bit_becomes_energy_per_byte():
    link = link_from_class(load_link_class('wifi5'), 'a', 'b')
    assert link.tx_j_per_byte == pytest.approx(15e-9 * 8)
    assert link.bytes_per_s == pytest.approx(77e6 / 8)
    assert math.isclose(link.latency_s, 0.002)


def test_unknown_class_rate_and_field_are_named():
    with pytest.raises(UnknownNameError, match="'jetson_tx3': did you mean 'jetson_tx2'"):
        load_device_class('jetson_tx3')
    with pytest.raises(UnknownNameError, match="unknown link class 'wifi7'"):
        load_link_class('wifi7')
    board = load_device_class('raspberry_pi_4')
    with pytest.raises(UnknownNameError, match="rate of raspberry_pi_4 'fp16'"):
        device_from_class(board, 'd', rate='fp16')
    with pytest.raises(UnknownNameError, match="'batery_j': did you mean 'battery_j'"):
        device_from_class(board, 'd', batery_j=1.0)


@pytest.mark.parametrize(
    ('path', 'value', 'text'),
    [
        (('idle_w',), 3, r'board\.yaml: idle_w: expected value, mark and source'),
        (('idle_w',), figure('much'), r"idle_w: value 'much' must be a finite number"),
        (('idle_w',), figure(-1), r'idle_w: value -1 must be a finite number, 0 or more'),
        (('idle_w',), figure(1, mark='X'), r"idle_w: mark 'X' must be one of DS, DS\*, M, D, G"),
        (('idle_w', 'source'), ' ', r"idle_w: source ' ' must name"),
        (('idle_power',), figure(3), r'idle_power: unknown; known'),
        (('rates', 'fp32', 'speed'), figure(3), r'rates\.fp32\.speed: unknown'),
        (('rates', 'fp32', 'active_w'), None, r'rates\.fp32\.active_w: expected value'),
        (('rates',), [1], r'rates: expected a mapping'),
        (('default_rate',), 'fp16', r"default_rate: 'fp16' is not one of fp32"),
        (('description',), 7, r'description: expected a text, found 7'),
    ],
)
def test_bad_entry_is_reported_with_file_and_key(write, good, path, value, text):
    entry = good
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    with pytest.raises(ClassFileError, match=text):
        load_device_class('board', write(good))


@pytest.mark.parametrize('content', ['a: [', '- 1\n'])
def test_file_that_is_no_mapping_is_reported(write, content):
    with pytest.raises(ClassFileError, match=r'board\.yaml: '):
        load_link_class('board', write(content, 'links'))


def test_environment_chooses_the_directory(write, good, monkeypatch):
    root = write(good)
    monkeypatch.setenv('LAPDTR_CONFIG', str(root))
    assert config_directory() == root
    assert load_device_class('board').description == 'a board'
    monkeypatch.setenv('LAPDTR_CONFIG', str(root / 'missing'))
    with pytest.raises(ClassFileError, match='set LAPDTR_CONFIG'):
        config_directory()


def test_installed_share_is_found_through_the_ament_prefix(tmp_path, monkeypatch):
    from lapdtr_ros.planning import classes

    share = tmp_path / 'share' / 'lapdtr_ros' / 'config'
    (share / 'devices').mkdir(parents=True)
    monkeypatch.delenv('LAPDTR_CONFIG', raising=False)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    monkeypatch.setattr(classes, '__file__', str(tmp_path / 'a' / 'b' / 'c' / 'classes.py'))
    assert config_directory() == share
