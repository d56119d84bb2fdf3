"""The benchmark of burned-in text, on a few phantoms."""

import numpy as np
import pytest

from benchmarks import burned_in
from benchmarks.inscriptions import FONTS, Inscription, burn, inscribe
from medfocus.stages.burned_in import is_installed


@pytest.mark.skipif(not is_installed(), reason="needs the extra: pip install 'medfocus[ocr]'")
def test_texts_are_found_on_phantoms(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["burned_in", "--images", "4"])
    monkeypatch.setattr(burned_in, "SIDES", (256, 320))
    assert burned_in.main() == 0
    out = capsys.readouterr().out
    assert "| phantoms | 4 | 1.000 | 0.000 |" in out
    assert out.count("met") == 2 and "MISSED" not in out


def test_a_text_that_is_not_found_is_marked() -> None:
    trial = burned_in.Trial(256, inscribe(np.random.default_rng(0), 0), found=False, alarm=True)
    assert [line.rpartition(" ")[2] for line in burned_in.judge([trial])] == ["MISSED", "MISSED"]


def test_the_extra_is_named_where_it_is_absent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["burned_in"])
    monkeypatch.setattr(burned_in, "is_installed", lambda: False)
    assert burned_in.main() == 0
    assert "n/a, install with pip install 'medfocus[ocr]'" in capsys.readouterr().out


@pytest.mark.parametrize("font", FONTS)
def test_an_inscription_changes_its_box_alone(font: str) -> None:
    image = np.full((200, 300), 100, np.uint8)
    for light, turned in ((True, False), (False, True)):
        burned, (top, left, bottom, right) = burn(
            image, Inscription("SMITH 1957", "name", font, 16, 60, light, turned, (0.5, 0.5))
        )
        changed = burned != image
        assert changed[top:bottom, left:right].any(axis=0).mean() > 0.5
        changed[top:bottom, left:right] = False
        assert not changed.any() and image.max() == 100
        assert abs(int(burned.max() if light else burned.min()) - 100) == 60
