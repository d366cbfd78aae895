"""The command line: the demo on real recordings, and what `info` and `verify` say."""

from __future__ import annotations

import numpy as np
import pytest

import xroutine as xrt
from xroutine.cli import main


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    pytest.importorskip("aeon")
    folder = tmp_path_factory.mktemp("demo")
    main(["demo", "--folder", str(folder)])
    return folder


def test_demo_runs_the_main_job_on_real_recordings(demo):
    from aeon.datasets import load_basic_motions, load_japanese_vowels
    from scipy.signal import butter, filtfilt

    motions, activity = load_basic_motions()
    vowels, _ = load_japanese_vowels()
    filtered = xrt.open(demo / "lowpass.zarr")
    b, a = butter(4, 2.0, fs=10.0)
    assert len(filtered.trials) == len(motions) == 80
    assert filtered.activity.values.tolist() == activity.tolist()
    for found, raw in zip(filtered.trials, motions, strict=True):
        np.testing.assert_array_equal(found.values, filtfilt(b, a, raw.T, axis=0))
    changes = xrt.open(demo / "delta.zarr")
    assert len(changes.trials) == len(vowels) == 640
    assert changes.trials.lengths.tolist() == [case.shape[1] for case in vowels]
    assert (demo / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert len(xrt.open(demo / "power.zarr").trials.log.splitlines()) > 1


def test_info_and_verify(demo, capsys):
    main(["info", str(demo / "delta.zarr")])
    told = capsys.readouterr().out
    for expected in (
        "complete",
        "delta (sample: ",
        "blosc",
        "crc32c",
        "640, ragged, 7 to 29 along time",
        "numpy 2",
        "|===",
    ):
        assert expected in told
    main(["verify", str(demo / "delta.zarr")])
    assert "complete; " in capsys.readouterr().out


def test_errors_are_one_line(tmp_path, capsys):
    for command in ("info", "verify"):
        for url in (str(tmp_path / "nothing.zarr"), "no-such-protocol://bucket/a.zarr"):
            with pytest.raises(SystemExit) as stopped:
                main([command, url])
            assert stopped.value.code == 1
            told = capsys.readouterr().err
            assert told.startswith("xroutine: ")
            assert told.count("\n") == 1
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path / "broken.zarr")])
    assert "metadata are damaged" in capsys.readouterr().err
