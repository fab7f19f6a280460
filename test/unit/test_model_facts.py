"""Facts of models: the same from the file as worked out, and without torch."""

import subprocess
import sys

import pytest

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.models import facts
from lapdtr_ros.models.profiling import work_out_facts

NAMES = ('deit_tiny_distilled_patch16_224', 'swin_tiny_patch4_window7_224', 'edgevit_xxs+detection')


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """An empty cache on disk, and nothing remembered."""
    monkeypatch.setenv('LAPDTR_CACHE', str(tmp_path))
    facts._facts.cache_clear()
    yield tmp_path / 'models'
    facts._facts.cache_clear()


@pytest.mark.parametrize('name', NAMES)
def test_facts_from_the_file_are_those_worked_out(cold, name):
    worked_out = work_out_facts(name)
    assert facts._facts(name) == worked_out
    facts._facts.cache_clear()
    assert len(list(cold.iterdir())) == 1
    assert facts._facts(name) == worked_out


@pytest.mark.parametrize('content', [b'', b'{"spec": {}}', b'\xff\xfe'])
def test_a_broken_file_is_replaced(cold, content):
    facts._facts(NAMES[0])
    facts._facts.cache_clear()
    (path,) = cold.iterdir()
    path.write_bytes(content)
    assert facts.model_spec(NAMES[0]) == work_out_facts(NAMES[0]).spec
    assert path.stat().st_size > 1000


def test_a_cache_that_cannot_be_written_is_done_without(cold, monkeypatch):
    cold.parent.joinpath('file').write_text('')
    monkeypatch.setenv('LAPDTR_CACHE', str(cold.parent / 'file'))
    assert facts.model_spec(NAMES[0]).name == NAMES[0]


def test_unknown_models_leave_no_file(cold):
    with pytest.raises(UnknownNameError, match='nonsense'):
        facts.profile_model('nonsense')
    assert not cold.exists()


def test_known_facts_need_no_torch(cold):
    facts._facts(NAMES[0])
    code = (
        'import sys; from lapdtr_ros.models.facts import profile_model; '
        f'print(len(profile_model({NAMES[0]!r})), "torch" in sys.modules)'
    )
    told = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.split() == [str(len(facts.profile_model(NAMES[0]))), 'False']
