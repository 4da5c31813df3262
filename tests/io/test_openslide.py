import pickle
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.io.slide_files import painted, write_svs

from agl_sc.io import _openslide
from agl_sc.io._image import open_image
from agl_sc.io._openslide import open_slide_levels, slide_properties, vendor_of

pytest.importorskip("openslide")


@pytest.fixture
def svs(tmp_path: Path) -> Path:
    return write_svs(tmp_path / "slide.svs", painted())


def test_levels_hold_the_pixels_that_tifffile_reads(svs: Path) -> None:
    levels = open_slide_levels(svs)
    assert [level.shape for level in levels] == [(3, 240, 300), (3, 120, 150), (3, 60, 75)]
    np.testing.assert_array_equal(np.asarray(levels[0]), np.asarray(open_image(svs)))


def test_chunks_are_whole_tiles_of_the_file(tmp_path: Path) -> None:
    svs = write_svs(tmp_path / "slide.svs", np.tile(painted(), (3, 3, 1)), tile=240)
    assert open_slide_levels(svs)[0].chunks == ((3,), (480, 240), (480, 420))


def test_any_part_of_a_level_is_that_part_of_the_whole(svs: Path) -> None:
    level = open_slide_levels(svs)[1]
    whole = np.asarray(level)
    for part in (np.s_[:, 3:50, 7:8], np.s_[1:, ::5, 149:], np.s_[:, 0:0, :], np.s_[0, 100:, ::-1]):
        np.testing.assert_array_equal(np.asarray(level[part]), whole[part])


def _sum(level: Any) -> int:
    return int(level.compute(scheduler="single-threaded").sum(dtype=np.int64))


def test_levels_are_read_by_threads_and_by_processes_that_were_forked_after_the_slide_was_opened(svs: Path) -> None:
    level = open_slide_levels(svs)[0]
    expected = _sum(level)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(_sum, [level] * 8)) == {expected}
    assert _sum(pickle.loads(pickle.dumps(level))) == expected
    with get_context("fork").Pool(1) as processes:
        assert processes.map(_sum, [level]) == [expected]


def test_what_the_scanner_left_out_is_white(svs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openslide
    from PIL import Image

    def blank(*arguments: Any) -> Image.Image:
        return Image.new("RGBA", arguments[-1], (0, 0, 0, 0))

    level = open_slide_levels(svs)[0]
    monkeypatch.setattr(openslide.OpenSlide, "read_region", blank)
    assert (np.asarray(level) == 255).all()


def test_vendor_is_none_of_a_plain_tiff_and_without_openslide(svs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tifffile

    tifffile.imwrite(svs.with_name("plain.tif"), painted(), photometric="rgb", tile=(48, 48))
    assert vendor_of(svs) == "aperio"
    assert vendor_of(svs.with_name("plain.tif")) is None
    monkeypatch.setattr(_openslide, "has_openslide", lambda: False)
    assert vendor_of(svs) is None


def test_properties_tell_the_scale(svs: Path) -> None:
    assert float(slide_properties(svs)["openslide.mpp-x"]) == 0.25


def test_a_damaged_slide_is_named(svs: Path) -> None:
    level = open_slide_levels(svs)[0]
    svs.write_bytes(svs.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"slide\.svs' cannot be read as a slide \(.+\); is the file complete\?"):
        np.asarray(level)
