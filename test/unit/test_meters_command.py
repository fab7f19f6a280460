"""``lapdtr meters`` on file trees."""

from lapdtr_ros.cli import main


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{content}\n')


def test_found_meters_show_their_rails_and_missing_ones_their_reason(tmp_path, capsys):
    device = tmp_path / 'bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3'
    for channel, rail in enumerate(('VDD_IN', 'VDD_CPU_GPU_CV', 'VDD_SOC'), start=1):
        write(device / f'in{channel}_label', rail)
        write(device / f'in{channel}_input', 5000)
        write(device / f'curr{channel}_input', 1000)
    write(tmp_path / 'class/thermal/thermal_zone0/temp', 47000)
    split = ['--split', 'cpu=0.4', 'gpu=0.6', 'accelerator=0']
    assert main(['meters', '--seconds', '0.05', '--sysfs', str(tmp_path), *split]) == 0
    out = capsys.readouterr().out
    assert 'cpu+gpu+accelerator' in out
    assert '5.00 W' in out
    assert 'rapl: not found: no RAPL counters' in out
    assert '47.0 °C' in out
    assert 'VDD_CPU_GPU_CV/gpu (modelled)' in out
    assert '3.00 W' in out


def test_a_machine_without_meters_is_told_what_happens_instead(tmp_path, capsys):
    assert main(['meters', '--seconds', '0', '--sysfs', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert 'ina3221: not found' in out
    assert 'jtop: not found' in out


def test_an_unreadable_counter_is_explained(tmp_path, capsys):
    write(tmp_path / 'class/powercap/intel-rapl:0/name', 'package-0')
    assert main(['meters', '--seconds', '0', '--sysfs', str(tmp_path)]) == 0
    assert 'max_energy_range_uj' in capsys.readouterr().out
