import pytest

from medfocus.pipeline.console import logs


def test_who_follows_is_told_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_SECONDS_BETWEEN_FIGURES", -1.0)
    told: list[dict[str, float]] = []
    with logs.progress("score", 100, 40, told.append) as shown:
        shown.add(10, 2)
        shown.add(20, 0)
    assert [entry["rows_done"] for entry in told] == [50, 70]
    assert [entry["rows_quarantined"] for entry in told] == [2, 2] and told[0]["rows_total"] == 100
    rate = told[1]["images_per_second_now"]  # of this call alone: the forty were done before
    assert told[1]["seconds_left"] == pytest.approx(30 / rate, abs=1)
