"""The demo's scene, scenario and weights belong together."""

import os

import pytest

from lapdtr_ros.commands.demo import SCENE, change_of_wishes
from lapdtr_ros.datasets.scene import build_scene
from lapdtr_ros.models.errors import WeightsError
from lapdtr_ros.models.weights import open_weights
from lapdtr_ros.planning.classes import config_directory
from lapdtr_ros.scenario import load_scenario


@pytest.fixture
def scenario():
    return load_scenario(config_directory() / 'scenarios' / 'demo.yaml')


def test_streams_are_cameras_of_vehicles_in_the_scene_and_play_it_more_than_a_hundred_times(
    scenario,
):
    scene = build_scene(SCENE)
    agents = [scene.ids[place] for place in scene.connected]
    streams = scenario.file.streams
    assert {section.agent for section in streams.values()} == set(agents)
    assert all(section.source == f'cav_{section.agent}' for section in streams.values())
    assert scenario.file.fusion.ego == f'cav_{agents[0]}'
    assert sum(section.frames for section in streams.values()) >= 100
    # Every moment is played equally often by every camera.
    assert {section.frames % SCENE.frames for section in streams.values()} == {0}


def test_the_weights_that_ship_are_found_by_name_from_any_folder(scenario, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = scenario.file.model
    assert not os.path.isabs(model.weights)
    shipped = open_weights(model.name, model.weights)
    assert shipped.path.parent.name == 'weights'
    with pytest.raises(WeightsError, match=r'no such file here or in .*weights'):
        open_weights(model.name, 'nobodys.safetensors')


def test_a_users_own_file_goes_before_the_one_that_ships(scenario, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = scenario.file.model.weights
    (tmp_path / name).write_bytes(b'')
    assert open_weights(scenario.file.model.name, name).path.resolve() == tmp_path / name


def test_wishes_change_half_way():
    (change,) = change_of_wishes(108).interventions
    assert (change.after, change.node) == (54, 'planner')
    assert change.parameters['period_weight'] > 0
