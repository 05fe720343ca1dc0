"""The tables of docs/serving.md follow from benchmarks/scale.json."""

import json

from benchmarks import results


def test_the_tables_are_worked_out_from_the_file(tmp_path, monkeypatch):
    """One process labels 10 images a second and starts in 8 s; 100 million on 200 such take 50,000 s."""

    def row(cores: int, processes: int, speed: float) -> dict:
        speeds = {"median": speed, "min": speed - 1, "max": speed + 1}
        start = {"median": 8.0, "min": 7.0, "max": 9.0}
        about = {"model": "vit", "kind": "photographs", "cores": cores, "processes": processes}
        return about | {"images_per_second": speeds, "start_s": start}

    found = {"rows": [row(1, 1, 10.5), row(2, 1, 15.0), row(2, 2, 20.0)], "rounds": 3, "images": 1024}
    kind = {"bytes_per_image": 100_000, "distinct": 87, "median_megapixels": 0.5}
    machine = {"processor": "X", "instructions": "AVX2", "threads": 2, "accelerator": None}
    listed = {"median": 100_000, "min": 1, "max": 2}
    found |= {"kinds": {"photographs": kind}, "files_listed_per_second": listed, "machine": machine}
    (tmp_path / "scale.json").write_text(json.dumps(found))
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    text = results.render_scale()
    assert (
        "| photographs, 100.0 kB | `models/vit` | 10.5 (9.5 to 11.5) | 15.0 (14.0 to 16.0) | 20.0 (19.0 to 21.0) | 8 "
        "s |" in text
    )
    hours = 100e6 / 200 / 10 / 3600
    shard = (
        6_000  # √(100e6 × 8 × 10 / 200) = 6,325: each process starts 79 times, 632 s, and waits 632 s for the last one
    )
    told = f"{hours:.1f} | {200 * hours:,.0f} | ${200 * hours * 0.04:,.0f} | 10 TB | 2 MB/s | {shard:,} images | 3% |"
    assert told in text and f"that takes {100e6 / 1e5 / 60:.0f} minutes" in text
