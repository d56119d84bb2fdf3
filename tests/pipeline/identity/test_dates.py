from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfocus.pipeline.identity.dates import age_band, day_number, study_day, year_of

days = st.dates(date(1900, 1, 1), date(2199, 12, 31))
BANDS = [f"{start}-{start + 4}" for start in range(0, 90, 5)] + ["90+"]


@given(days, st.sampled_from(["%Y%m%d", "%Y.%m.%d", "%Y-%m-%d", "%Y/%m/%d", " %Y%m%d ", "%Y%m%d101530.000+0100"]))
def test_a_date_is_its_number_of_days(day: date, form: str) -> None:
    number = day_number(day.strftime(form))
    assert number == day.toordinal() - date(1900, 1, 1).toordinal() and year_of(number) == day.year


@given(st.none() | st.text(max_size=12) | st.from_regex(r"[0-9]{4}[-./]?[0-9]{2}[-./]?[0-9]{2}"))
def test_no_text_raises_an_error(text: str | None) -> None:
    number = day_number(text)
    assert number is None or 0 <= number < 110_000
    assert age_band(text, text, text) in {None, *BANDS}


@pytest.mark.parametrize("text", ["", "2024", "20240230", "18991231", "22000101", "2024-0131", "ABCD0101", "00000000"])
def test_what_is_no_date_has_no_number(text: str) -> None:
    assert day_number(text) is None


@given(st.integers(0, 130))
def test_the_band_holds_the_age(age: int) -> None:
    band = age_band(f"{age:03d}Y")
    assert band == ("90+" if age >= 90 else f"{age // 5 * 5}-{age // 5 * 5 + 4}") == age_band(str(age))


@given(days, days)
def test_the_age_is_that_of_the_last_birthday(birth: date, study: date) -> None:
    age = study.year - birth.year - (study.timetuple()[1:3] < birth.timetuple()[1:3])
    expected = age_band(f"{age}Y") if 0 <= age <= 130 else None
    assert age_band(None, birth.strftime("%Y%m%d"), study.strftime("%Y%m%d")) == expected
    assert age_band("047Y", birth.strftime("%Y%m%d"), study.strftime("%Y%m%d")) == "45-49"


@pytest.mark.parametrize(
    ("text", "band"),
    [("012D", "0-4"), ("030W", "0-4"), ("059M", "0-4"), ("061M", "5-9"), ("0Y", "0-4"), ("999Y", None), ("47 Y", None)],
)
def test_units_of_ages(text: str, band: str | None) -> None:
    assert age_band(text) == band


@given(days, st.integers(-1000, 1000))
def test_offsets_from_the_first_study(day: date, offset: int) -> None:
    first = day_number(day.strftime("%Y%m%d"))
    later = day + timedelta(days=offset)
    if later.year in range(1900, 2200):
        assert study_day(day_number(later.strftime("%Y%m%d")), first) == offset
    assert study_day(None, first) is None and study_day(first, None) is None
