import ast
import inspect
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('carla')

import carla
from doubles import carla_world

from lapdtr_ros.cosimulation.config import (
    CosimulationConfig,
    CosimulationError,
    VehicleSection,
    load_config,
)
from lapdtr_ros.cosimulation.simulation import Simulation
from lapdtr_ros.datasets.generator import generate
from lapdtr_ros.datasets.opv2v import open_dataset
from lapdtr_ros.datasets.scene import SceneConfig, build_scene

SCENE = SceneConfig(seed=4, frames=3, vehicles=2, width=64, height=48)
NAMES = ('cav_0', 'cav_1')


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    path = generate(SCENE, tmp_path_factory.mktemp('scene'), progress=False, workers=2)
    return build_scene(SCENE), open_dataset(path)[0]


@pytest.fixture
def server(recorded):
    return carla_world.Server(*recorded)


def config(**changes):
    vehicles = {name: VehicleSection() for name in NAMES}
    values = {'vehicles': vehicles, 'width': 64, 'height': 48, 'timeout_s': 1.0, 'traffic': 0}
    return CosimulationConfig(**{**values, **changes})


def test_the_double_has_the_signatures_of_the_genuine_api():
    stubs = ast.parse((Path(carla.__file__).parent / 'libcarla.pyi').read_text())
    genuine = {
        node.name: {f.name: f for f in node.body if isinstance(f, ast.FunctionDef)}
        for node in stubs.body
        if isinstance(node, ast.ClassDef)
    }
    bases = {'World': (), 'Vehicle': ('Actor',), 'Camera': ('Sensor', 'Actor'), 'Client': ()}
    own = {'shoot', 'state', 'get'}
    checked = 0
    for name, kind in inspect.getmembers(carla_world, inspect.isclass):
        if kind.__module__ != carla_world.__name__ or name == 'Server':
            continue
        known = {}
        for base in (*bases.get(name, ()), name):
            known |= genuine.get(base, {})
        for method, function in inspect.getmembers(kind, inspect.isfunction):
            if method.startswith('_') or method in own:
                continue
            assert method in known, f'{name}.{method} is not in the genuine API'
            theirs = [a.arg for a in known[method].args.args]
            ours = list(inspect.signature(function).parameters)
            if theirs and theirs != ['self', '*']:
                assert ours[: len(theirs)] == theirs[: len(ours)], (name, method, ours, theirs)
            checked += 1
    assert checked > 20


def test_vehicles_are_seen_as_the_recording_has_them(server, recorded):
    _, pictures = recorded
    with Simulation(config(), server.connect) as simulation:
        moments = [simulation.tick() for _ in range(4)]
        ids = simulation.actor_ids
    seen = [moment for moment in moments if moment.vehicles]
    assert len(seen) == 2
    assert all(set(moment.vehicles) == set(NAMES) for moment in seen)
    moment = seen[0]
    timestamp = pictures.timestamps[(moment.number - carla_world.FIRST_TICK) // 2]
    for name in NAMES:
        expected = pictures.frame(ids[name], timestamp)
        found = moment.vehicles[name].frame
        np.testing.assert_allclose(found.lidar_pose, expected.lidar_pose, atol=1e-4)
        for number, camera in expected.cameras.items():
            ours = found.cameras[number]
            np.testing.assert_allclose(ours.extrinsic, camera.extrinsic, atol=1e-4)
            np.testing.assert_allclose(ours.intrinsic, camera.intrinsic, atol=1e-4)
        assert found.vehicles.keys() >= expected.vehicles.keys()
        for key, label in expected.vehicles.items():
            np.testing.assert_allclose(found.vehicles[key].pose, label.pose, atol=1e-3)
            np.testing.assert_allclose(found.vehicles[key].extent, label.extent, atol=1e-3)
        picture = moment.vehicles[name].images[0]
        assert picture.shape == (48, 64, 3)
        assert picture.std() > 1


def test_pictures_have_red_first(server, recorded):
    from lapdtr_ros.datasets.opv2v import read_image

    _, pictures = recorded
    with Simulation(config(ticks_per_picture=1), server.connect) as simulation:
        moment = simulation.tick()
        own = simulation.actor_ids['cav_0']
    timestamp = pictures.timestamps[(moment.number - carla_world.FIRST_TICK) // 2]
    expected = read_image(pictures.frame(own, timestamp).image_paths[2])
    assert np.array_equal(moment.vehicles['cav_0'].images[2], expected)


def test_only_own_actors_go_and_settings_come_back(server):
    before = set(server.actors)
    with Simulation(config(seed=7), server.connect) as simulation:
        assert server.settings.synchronous_mode
        assert server.traffic_synchronous
        assert server.seed == 7
        assert len(server.actors) == len(before) + 2 * 5
        simulation.tick()
    assert set(server.actors) == before
    assert not server.settings.synchronous_mode
    assert not server.traffic_synchronous


def test_a_failure_half_way_leaves_nothing_behind(server):
    before = set(server.actors)
    taken = VehicleSection(spawn=(-1, 0, 0, 0, 0, 0))
    with pytest.raises(CosimulationError, match=r'vehicle b cannot be spawned at .*vehicles\.b'):
        Simulation(config(vehicles={'a': VehicleSection(), 'b': taken}), server.connect)
    assert set(server.actors) == before
    assert not server.settings.synchronous_mode


def test_more_vehicles_than_places_is_said(server):
    vehicles = {f'cav_{n}': VehicleSection() for n in range(9)}
    with pytest.raises(CosimulationError, match='no free spawn point is left for vehicle cav_2'):
        Simulation(config(vehicles=vehicles), server.connect)


def test_an_unknown_blueprint_is_named_with_examples(server):
    section = VehicleSection(blueprint='vehicle.tesla.roadster')
    with pytest.raises(CosimulationError, match=r'vehicle\.tesla\.roadster.*audi'):
        Simulation(config(vehicles={'cav_0': section}), server.connect)


def test_another_version_of_the_server_is_refused_with_the_remedy(recorded):
    server = carla_world.Server(*recorded, version='0.9.15')
    with pytest.raises(CosimulationError, match=r'pip install carla==0\.9\.15'):
        Simulation(config(), server.connect)


def test_an_unknown_town_is_named(server):
    with pytest.raises(CosimulationError, match='Town99'):
        Simulation(config(town='Town99'), server.connect)


def test_a_server_that_goes_is_said_at_once_and_closing_does_not_hang(server):
    with Simulation(config(), server.connect) as simulation:
        simulation.tick()
        server.silent_from = server.frame
        with pytest.raises(CosimulationError, match='did not answer within 1 s'):
            simulation.tick()
        began = time.monotonic()
    assert time.monotonic() - began < 1.0


def test_a_second_ticking_client_is_noticed(server):
    with Simulation(config(ticks_per_picture=1), server.connect) as simulation:
        genuine = server.connect('', 0).get_world().tick

        class Racing:
            def __getattr__(self, name):
                return getattr(server.connect('', 0).get_world(), name)

            def tick(self, seconds=10.0):
                number = genuine()
                genuine()
                for queues in simulation._queues.values():
                    for images in queues.values():
                        while images.qsize() > 1:
                            images.get()
                return number

        simulation._world = Racing()
        with pytest.raises(CosimulationError, match='another client ticks'):
            simulation.tick()


def test_no_server_is_said_by_the_genuine_client():
    absent = config(port=1, timeout_s=0.5)
    with pytest.raises(CosimulationError, match=r'localhost:1 did not answer within 0\.5 s'):
        Simulation(absent)


def test_an_unknown_host_is_said_by_the_genuine_client():
    with pytest.raises(CosimulationError, match='no-such-host'):
        Simulation(config(host='no-such-host.invalid', timeout_s=2.0))


def write(path, text):
    path.write_text(textwrap.dedent(text))
    return path


def test_our_yaml_is_read_and_checked(tmp_path):
    text = """
        town: Town05
        vehicles:
          cav_0: {spawn: [1, 2, 3, 0, 90, 0], soc: 0.4}
          cav_1: {}
        """
    found = load_config(write(tmp_path / 'c.yaml', text))
    assert found.town == 'Town05'
    assert found.vehicles['cav_0'].spawn == (1, 2, 3, 0, 90, 0)
    assert found.vehicles['cav_1'].soc == 0.9


@pytest.mark.parametrize(
    ('text', 'named'),
    [
        ('vehicles: {}', 'vehicles'),
        ('vehicles: {cav_0: {sock: 1}}', r'vehicles\.cav_0\.sock'),
        ('vehicles: {cav_0: {soc: 1.5}}', r'vehicles\.cav_0\.soc'),
        ('vehicles: {0cav: {}}', '0cav'),
        ('step_s: 0.5\nvehicles: {cav_0: {}}', 'step_s'),
        ('[1', 'not a YAML file'),
        ('hello', 'expected keys'),
    ],
)
def test_a_wrong_yaml_names_what_is_wrong(tmp_path, text, named):
    with pytest.raises(CosimulationError, match=named):
        load_config(write(tmp_path / 'c.yaml', text))


OPENCDA = """
    world: {sync_mode: true, client_port: 2100, fixed_delta_seconds: 0.05, seed: 11}
    vehicle_base: {v2x: {communication_range: 45}}
    carla_traffic_manager:
      vehicle_list: ~
      range:
        - [-40, 30, 140, 145, 5, 3.5, 8]
        - [0, 30, 0, 5, 5, 3.5, 4]
    scenario:
      single_cav_list:
        - {name: cav-a, spawn_position: [-34, 139, 0.3, 0, 90, 0], destination: [1, 2, 3]}
        - {spawn_position: [10, 20, 0.3, 0, 0, 0]}
    """


def test_a_scenario_of_opencda_is_understood(tmp_path):
    found = load_config(write(tmp_path / 'single.yaml', OPENCDA))
    assert (found.port, found.seed, found.step_s, found.traffic) == (2100, 11, 0.05, 12)
    assert list(found.vehicles) == ['cav_a', 'cav_1']
    assert found.vehicles['cav_a'].spawn == (-34, 139, 0.3, 0, 90, 0)


def test_an_opencda_vehicle_without_a_place_is_named(tmp_path):
    text = 'scenario: {single_cav_list: [{name: a}]}'
    with pytest.raises(CosimulationError, match=r'single_cav_list\[0\]\.spawn_position'):
        load_config(write(tmp_path / 'single.yaml', text))
