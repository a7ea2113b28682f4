"""Energy is what the kernel's counters say, and nothing where there are none."""

from anysat.areas.meter import Meter


def counter(folder, name, value, full=1_000_000):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{value}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{full}\n")


def test_what_two_processors_used_is_added_up_over_a_counter_that_starts_again(tmp_path):
    counter(tmp_path, "intel-rapl:0", 100_000)
    counter(tmp_path, "intel-rapl:1", 900_000)
    counter(tmp_path, "intel-rapl:0:0", 0)  # a part of the first
    meter = Meter.find(tmp_path)
    counter(tmp_path, "intel-rapl:0", 600_000)
    counter(tmp_path, "intel-rapl:1", 200_000)
    counter(tmp_path, "intel-rapl:0:0", 500_000)
    assert meter.read() == 0.5 + 0.3
    assert meter.read() == 0.8


def test_no_counter_is_no_meter(tmp_path):
    assert Meter.find(tmp_path / "none") is None
    assert Meter.find(tmp_path) is None
    counter(tmp_path, "intel-rapl:0", "nonsense")
    assert Meter.find(tmp_path) is None


def test_a_processor_is_counted_once(tmp_path):
    """Not the whole machine beside it, nor the same by another door."""
    for name, what in (("intel-rapl:0", "package-0"), ("intel-rapl:1", "psys"), ("intel-rapl-mmio:0", "package-0")):
        counter(tmp_path, name, 0)
        (tmp_path / name / "name").write_text(f"{what}\n")
    meter = Meter.find(tmp_path)
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl-mmio:0"):
        counter(tmp_path, name, 300_000)
    assert meter.read() == 0.3
