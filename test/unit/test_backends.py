"""Backends agree with each other."""

import numpy as np
import pytest
import torch

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.execution.backends import OnnxBackend, TorchBackend, make_backend
from lapdtr_ros.models.facts import cache_directory, input_shape
from lapdtr_ros.models.weights import load_units


@pytest.fixture(autouse=True)
def private_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv('LAPDTR_CACHE', str(tmp_path_factory.getbasetemp() / 'backends'))


def random_input(name, unit):
    return np.random.default_rng(1).standard_normal(input_shape(name, unit), dtype=np.float32)


@pytest.mark.parametrize(
    ('name', 'start', 'stop'), [('test_vit', 0, 8), ('efficientvit_m0@96x160', 1, 5)]
)
def test_onnx_gives_the_output_of_torch(name, start, stop):
    pytest.importorskip('onnxscript')
    module = load_units(name, start, stop, 'random:2')
    features = random_input(name, start)
    expected = TorchBackend(module).run(features, start, stop)
    np.testing.assert_allclose(
        OnnxBackend(module).run(features, start, stop), expected, atol=1e-4, rtol=1e-4
    )
    # Exporting must leave the module as it was.
    np.testing.assert_array_equal(TorchBackend(module).run(features, start, stop), expected)


def test_onnx_opens_an_exported_stage_and_exports_a_part_when_asked():
    pytest.importorskip('onnxscript')
    module = load_units('test_vit', 6, 8, 'random:2')
    OnnxBackend(module)
    files = {path: path.stat().st_mtime_ns for path in (cache_directory() / 'onnx').iterdir()}
    backend = OnnxBackend(module)
    assert files == {path: path.stat().st_mtime_ns for path in files}
    features = random_input('test_vit', 7)
    expected = TorchBackend(module).run(features, 7, 8)
    np.testing.assert_allclose(backend.run(features, 7, 8), expected, atol=1e-4)


def test_torch_leaves_read_only_input_alone_and_gives_contiguous_output():
    name = 'tiny_vit_5m_224@64x64'
    module = load_units(name, 4, 6, 'random:2')
    features = random_input(name, 4)
    features.flags.writeable = False
    before = features.copy()
    output = TorchBackend(module).run(features, 4, 6)
    np.testing.assert_array_equal(features, before)
    assert output.flags.c_contiguous
    assert output.dtype == np.float32


def test_torch_uses_the_number_of_threads_it_was_given():
    module = load_units('test_vit', 6, 8, 'random:2')
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            TorchBackend(module, threads).run(random_input('test_vit', 6), 6, 8)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_an_unknown_backend_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'torch'"):
        make_backend('torhc', load_units('test_vit', 0, 1, 'random:0'))
