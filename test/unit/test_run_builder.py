"""What a run is compared with: the whole model without partitioning."""

import pytest
import yaml

from lapdtr_ros.evaluation.run_builder import RunBuilder
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.scenario import load_scenario

MODEL = 'test_vit'


def baselines(tmp_path, sources, **requirements):
    content = {
        'name': 'x',
        'model': {'name': MODEL, 'weights': 'random:0'},
        'devices': {'slow': {'class': 'jetson_nano'}, 'fast': {'class': 'jetson_xavier_nx'}},
        'links': [{'between': ['slow', 'fast'], 'class': 'ethernet'}],
        'streams': {
            f'{source}/camera{number}': {'source': source, 'image_topic': '/image'}
            for number, source in enumerate(sources)
        },
        'requirements': requirements,
    }
    path = tmp_path / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content))
    record = RunBuilder(load_scenario(path), profile_model(MODEL)).build()
    return {baseline.name: baseline for baseline in record.baselines}


def test_one_stream_is_compared_with_its_source_and_with_the_best_that_is_forbidden(tmp_path):
    found = baselines(tmp_path, ['slow'], pictures_stay=True)
    assert list(found) == [
        'slow alone (source, best allowed)',
        'fast alone (not allowed here)',
    ]


def test_the_best_device_that_is_allowed_is_listed(tmp_path):
    found = baselines(tmp_path, ['slow'])
    assert list(found) == ['slow alone (source)', 'fast alone (best allowed)']


def test_several_sources_count_by_the_mean_of_their_streams(tmp_path):
    both = baselines(tmp_path, ['slow', 'fast'], pictures_stay=True)['each source alone']
    parts = [
        next(iter(baselines(tmp_path, [source], pictures_stay=True).values()))
        for source in ('slow', 'fast')
    ]
    assert both.energy_j == pytest.approx(sum(part.energy_j for part in parts) / 2)
    assert both.latency_s == pytest.approx(sum(part.latency_s for part in parts) / 2)
