import pytest

from medfocus.pipeline.console import logs


def test_figures_of_the_progress_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_SECONDS_BETWEEN_FIGURES", -1.0)
    reports: list[dict[str, float]] = []
    with logs.progress("score", 100, 40, reports.append) as counter:
        counter.add(10, 2)
        counter.add(20, 0)
    assert [entry["rows_done"] for entry in reports] == [50, 70]
    assert [entry["rows_quarantined"] for entry in reports] == [2, 2] and reports[0]["rows_total"] == 100
    rate = reports[1]["images_per_second_now"]  # of this call alone: the forty were done before
    assert reports[1]["seconds_left"] == pytest.approx(30 / rate, abs=1)
