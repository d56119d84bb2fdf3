"""Dates and ages of DICOM, in forms that do not identify: days since a first study, and bands of ages."""

import re
from datetime import date

_EPOCH = date(1900, 1, 1)
# Dates as PS3.5 6.2 has them (DA), as ACR-NEMA had them (with points), and the start of a date with time (DT).
_DATE = re.compile(r"(\d{4})([.\-/]?)(\d{2})\2(\d{2})")
_AGE = re.compile(r"(\d{1,3})([DWMY]?)")
_DAYS_OF_UNIT = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25, "": 365.25}
_DAYS_OF_YEAR = 365.25
_BAND, _OLDEST_BAND, _OLDEST = 5, 90, 130


def day_number(text: str | None) -> int | None:
    """Days from 1900-01-01 to a date.

    Args:
        text: a value of VR DA or DT; points, hyphens or slashes may separate its parts.

    Returns:
        The number, 0 for 1900-01-01; None where the text is no date, or one before 1900 or after 2199.
    """
    day = _date(text)
    return (day - _EPOCH).days if day else None


def year_of(day: int) -> int:
    """The year of a day number."""
    return date.fromordinal(_EPOCH.toordinal() + day).year


def study_day(day: int | None, first: int | None) -> int | None:
    """Days from a patient's first study to a study.

    Args:
        day: day number of the study.
        first: day number of the patient's first study, as it was known when the patient was packed first. A study
            before it, which is found later, has a negative number.

    Returns:
        The days; None where one of the dates is not known.
    """
    return None if day is None or first is None else day - first


def age_band(age: str | None, birth: str | None = None, study: str | None = None) -> str | None:
    """The band of five years that holds an age.

    Args:
        age: Patient's Age (0010,1010), VR AS: a number and D, W, M or Y; a number alone means years.
        birth: Patient's Birth Date (0010,0030), which is used where the age is not known.
        study: Study Date (0008,0020).

    Returns:
        ``0-4``, ``5-9`` to ``85-89``, or ``90+`` for all older patients; None where the age is not known.
    """
    years = _years(age)
    if years is None:
        born, studied = _date(birth), _date(study)
        years = _birthdays(born, studied) if born and studied else None
    if years is None or not 0 <= years <= _OLDEST:
        return None
    if years >= _OLDEST_BAND:
        return f"{_OLDEST_BAND}+"
    start = int(years) // _BAND * _BAND
    return f"{start}-{start + _BAND - 1}"


def _years(age: str | None) -> float | None:
    """An age of VR AS in years."""
    found = _AGE.fullmatch(age.strip().upper()) if age else None
    return int(found[1]) * _DAYS_OF_UNIT[found[2]] / _DAYS_OF_YEAR if found else None


def _birthdays(born: date, day: date) -> int:
    """The age in years on a day."""
    return day.year - born.year - ((day.month, day.day) < (born.month, born.day))


def _date(text: str | None) -> date | None:
    """The date in a text, where it is one from 1900 to 2199."""
    found = _DATE.match(text.strip()) if text else None
    if found is None or not 1900 <= int(found[1]) < 2200:
        return None
    try:
        return date(int(found[1]), int(found[3]), int(found[4]))
    except ValueError:  # no such day
        return None
