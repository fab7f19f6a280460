"""The detection head on every kind of features, and networks that stop early."""

import numpy as np
import pytest
import torch

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.models import detection
from lapdtr_ros.models.detection import DetectionHead
from lapdtr_ros.models.errors import ModelNameError
from lapdtr_ros.models.facts import model_spec, profile_model
from lapdtr_ros.models.layout import NCHW, NHWC, TOKENS, FeatureLayout
from lapdtr_ros.models.weights import load_units
from lapdtr_ros.perception import detection_targets

torch.set_num_threads(1)

DETECTORS = [
    'test_vit@64x96+detection',
    'efficientvit_m0:stages.1.blocks.0@64x128+detection',
    'edgevit_xxs:stages.2.blocks.0@64x96+detection',
    'swin_tiny_patch4_window7_224:layers.1.blocks.0@64x64+detection',
]


def test_head_and_decoder_agree_on_the_channels():
    assert detection.CHANNELS == detection_targets.CHANNELS


@pytest.mark.parametrize(
    ('layout', 'shape'),
    [
        (FeatureLayout(TOKENS, 12, (4, 6), prefix_tokens=1), (2, 25, 12)),
        (FeatureLayout(NCHW, 12, (4, 6)), (2, 12, 4, 6)),
        (FeatureLayout(NHWC, 12, (4, 6)), (2, 4, 6, 12)),
    ],
)
def test_head_gives_probabilities_and_box_channels_for_every_layout(layout, shape):
    torch.manual_seed(0)
    head = DetectionHead(layout, (64, 96)).eval()
    result = head(torch.randn(shape))
    assert result.shape == (2, detection.CHANNELS, 8, 12)
    assert result.dtype == torch.float32
    assert 0 <= result[:, 0].min() <= result[:, 0].max() <= 1
    assert result[:, 1:].min() < 0  # only the heat is squashed


def test_untrained_head_finds_next_to_nothing():
    torch.manual_seed(0)
    head = DetectionHead(FeatureLayout(NCHW, 8, (4, 4)), (64, 64)).eval()
    head.start_rare()
    assert head(torch.randn(1, 8, 4, 4))[:, 0].mean() < 0.05


@pytest.mark.parametrize('model', DETECTORS)
def test_detector_split_at_every_cut_gives_the_unsplit_output(model):
    units = len(model_spec(model).unit_names)
    height, width, _ = model_spec(model).picture_shape
    picture = torch.from_numpy(
        np.random.default_rng(0).normal(size=(1, 3, height, width)).astype(np.float32)
    )
    whole = load_units(model, 0, units, 'random:0')
    with torch.inference_mode():
        expected = whole(picture)
        for cut in range(1, units):
            first = load_units(model, 0, cut, 'random:0')
            second = load_units(model, cut, units, 'random:0')
            torch.testing.assert_close(second(first(picture)), expected, rtol=0, atol=1e-5)


def test_truncated_network_has_no_later_units_and_a_finer_map():
    whole = model_spec('efficientvit_m0@128x128+detection')
    short = model_spec('efficientvit_m0:stages.0.blocks.0@128x128+detection')
    assert short.unit_names == ('embed', 'stages.0.blocks.0', 'head')
    assert short.layout.grid == (8, 8)
    assert whole.layout.grid == (2, 2)
    assert profile_model(short.name).units[-1].output_shape == (detection.CHANNELS, 16, 16)


def test_truncation_at_the_last_unit_changes_nothing():
    whole = model_spec('test_vit@64x64+detection')
    last = whole.unit_names[-2]
    assert model_spec(f'test_vit:{last}@64x64+detection').layout == whole.layout


@pytest.mark.parametrize(
    ('model', 'error', 'text'),
    [
        ('test_vit:blocks.77+detection', UnknownNameError, 'blocks.77'),
        ('test_vit:blocks.1', ModelNameError, '+detection|add a head'),
    ],
)
def test_impossible_truncations_are_refused(model, error, text):
    with pytest.raises(error, match=text.replace('+', r'\+')):
        model_spec(model)
