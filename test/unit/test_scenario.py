import pytest
import yaml

from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.planning.classes import config_directory
from lapdtr_ros.scenario import load_scenario


def content():
    return {
        'name': 'test',
        'model': {'name': 'test_vit', 'weights': 'random:0'},
        'devices': {
            'a': {'class': 'jetson_nano', 'soc': 0.5, 'battery_wh': 10, 'memory_mb': 50},
            'b': {'class': 'edge_server'},
        },
        'links': [{'between': ['a', 'b'], 'class': 'wifi6', 'latency_s': 0.004}],
        'streams': {'a/camera0': {'source': 'a', 'dataset': 'scene', 'rate_hz': 10}},
        'requirements': {'weights': {'energy': 2, 'latency': 1}, 'pictures_stay': True},
    }


def load(tmp_path, data):
    path = tmp_path / 'scenario.yaml'
    path.write_text(yaml.safe_dump(data))
    return load_scenario(path)


def changed(*path_and_value):
    *path, value = path_and_value
    data = content()
    target = data
    for key in path[:-1]:
        target = target[key]
    if value is None:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return data


def test_figures_come_from_the_classes_and_the_file_overrides_them(tmp_path):
    scenario = load(tmp_path, content())
    nano = scenario.fleet.devices['a']
    assert (nano.battery_j, nano.soc, nano.memory_bytes) == (36000.0, 0.5, 50e6)
    assert nano.flops_per_s > 0
    assert scenario.fleet.links['b', 'a'].latency_s == 0.004
    assert scenario.fleet.links['a', 'b'].bytes_per_s > 0
    assert scenario.requirements.weights.energy == 2
    assert scenario.requirements.pictures_stay
    assert scenario.sink('a/camera0') == 'a'
    assert scenario.dataset('a/camera0') == tmp_path / 'scene'


@pytest.mark.parametrize('path', sorted((config_directory() / 'scenarios').glob('*.yaml')))
def test_shipped_scenarios_are_valid(path):
    assert load_scenario(path).file.name == path.stem


BAD = {
    'missing key': (changed('model', 'weights', None), 'model.weights: is missing'),
    'misspelt key': (
        changed('requirements', 'max_latencys', 1.0),
        "requirements.max_latencys: unknown key; did you mean 'max_latency_s'?",
    ),
    'misspelt key of a device': (
        changed('devices', 'a', 'batery_wh', 5),
        "devices.a.batery_wh: unknown key; did you mean 'battery_wh'?",
    ),
    'negative battery': (changed('devices', 'a', 'battery_wh', -5), 'devices.a.battery_wh'),
    'state of charge in percent': (changed('devices', 'a', 'soc', 80), 'devices.a.soc'),
    'full load': (changed('devices', 'a', 'load', 1.0), 'devices.a.load'),
    'wrong type': (changed('devices', 'a', 'soc', 'full'), "(got 'full')"),
    'link to nobody': (
        changed('links', 0, 'between', ['a', 'c']),
        "links[0].between: unknown device 'c'",
    ),
    'link to itself': (changed('links', 0, 'between', ['a', 'a']), 'links to itself'),
    'link class': (changed('links', 0, 'class', 'wifi7'), "did you mean 'wifi6'?"),
    'device class': (changed('devices', 'a', 'class', 'jetson_nanoo'), "'jetson_nano'"),
    'source': (changed('streams', 'a/camera0', 'source', 'z'), "source: unknown device 'z'"),
    'sink': (changed('streams', 'a/camera0', 'sink', 'z'), "sink: unknown device 'z'"),
    'both inputs': (
        changed('streams', 'a/camera0', 'image_topic', '/camera'),
        'both dataset and image_topic',
    ),
    'camera': (changed('streams', 'a/camera0', 'camera', 7), 'streams.a/camera0.camera'),
    'name': (changed('devices', '1st', {'class': 'jetson_nano'}), 'is not a ROS name'),
    'no devices': (changed('devices', {}), 'devices'),
    'no streams': (changed('streams', {}), 'streams'),
    'negative weight': (changed('requirements', 'weights', {'energy': -1}), 'weights.energy'),
    'backend': (changed('execution', {'backend': 'tensorrt'}), 'execution.backend'),
}


@pytest.mark.parametrize(('data', 'text'), BAD.values(), ids=BAD.keys())
def test_a_bad_scenario_names_the_key_and_the_remedy(tmp_path, data, text):
    with pytest.raises(LapdtrError) as caught:
        load(tmp_path, data)
    assert text in str(caught.value)
    assert (
        'scenario.yaml' in str(caught.value)
        or 'class' in text
        or "'jetson" in text
        or ('wifi' in text)
    )


def test_linked_twice_is_refused(tmp_path):
    data = content()
    data['links'].append({'between': ['b', 'a'], 'class': '5g'})
    with pytest.raises(LapdtrError, match='linked twice'):
        load(tmp_path, data)


def test_a_missing_file_and_a_file_that_is_no_yaml(tmp_path):
    with pytest.raises(LapdtrError, match=r'nothing\.yaml.*give the path'):
        load_scenario(tmp_path / 'nothing.yaml')
    path = tmp_path / 'bad.yaml'
    path.write_text('a: [1, 2')
    with pytest.raises(LapdtrError, match='not a YAML file'):
        load_scenario(path)
    path.write_text('just text')
    with pytest.raises(LapdtrError, match='file:'):
        load_scenario(path)


def accuracy_table(tmp_path, **changes):
    data = {
        'model': 'test_vit',
        'weights': 'random:0',
        'units': 3,
        'metric': 'AP50',
        'dataset': 'made up',
        'frames': 1,
        'command': 'none',
        'accuracy': 0.5,
        'flops_per_s': 1e10,
        'pictures': [{'quality': 80, 'bytes': 30_000, 'error': 0.004}],
        'curve': {'error': [0, 0.1], 'accuracy': [0.5, 0.4]},
        **changes,
    }
    (tmp_path / 'table.yaml').write_text(yaml.safe_dump(data))


def lossy(**requirements):
    data = content()
    data['model']['profile'] = 'table.yaml'
    data['requirements'] = requirements
    data['execution'] = {'jpeg_quality': 80}
    return data


def test_accuracy_table_comes_with_the_scenario(tmp_path):
    accuracy_table(tmp_path)
    asked = {'min_accuracy': 0.45, 'allow_jpeg': True, 'weights': {'energy': 1, 'accuracy': 3}}
    scenario = load(tmp_path, lossy(**asked))
    assert scenario.table.accuracy == 0.5
    requirements = scenario.requirements
    assert (requirements.min_accuracy, requirements.weights.accuracy) == (0.45, 3)
    assert (requirements.jpeg_bytes, requirements.jpeg_error) == (30_000, 0.004)


def test_table_of_another_model_or_weights_is_refused(tmp_path):
    for changes in ({'model': 'other'}, {'weights': 'random:1'}):
        accuracy_table(tmp_path, **changes)
        with pytest.raises(LapdtrError, match=r'model\.profile: table\.yaml is of'):
            load(tmp_path, lossy())


def test_jpeg_quality_that_was_not_calibrated_is_refused(tmp_path):
    accuracy_table(tmp_path)
    data = lossy(allow_jpeg=True)
    data['execution']['jpeg_quality'] = 33
    with pytest.raises(LapdtrError, match=r'execution\.jpeg_quality: .* use one of 80'):
        load(tmp_path, data)


@pytest.mark.parametrize(
    ('key', 'value'),
    [('allow_jpeg', True), ('min_accuracy', 0.4), ('weights', {'energy': 1, 'accuracy': 1})],
)
def test_nothing_that_costs_accuracy_is_planned_without_a_table(tmp_path, key, value):
    data = content()
    data['requirements'] = {key: value}
    with pytest.raises(LapdtrError, match=r'requirements\..*: needs to know the accuracy'):
        load(tmp_path, data)


def test_missing_table_is_named(tmp_path):
    with pytest.raises(LapdtrError, match=r'model\.profile: .*table\.yaml'):
        load(tmp_path, lossy())
