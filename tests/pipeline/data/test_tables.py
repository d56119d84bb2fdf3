import threading
import time

import pytest

from medfocus.pipeline.data.tables import each_of


def test_results_come_in_order_and_few_are_read_ahead() -> None:
    """A consumer that is slow holds up the readers: memory does not grow with the number of files."""
    read: list[int] = []

    def reader(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        read.append(number)
        return number

    results = each_of(iter(range(100)), reader)
    for number in range(50):
        assert next(results) == number
    time.sleep(0.05)
    assert len(read) <= 50 + 9
    assert list(results) == list(range(50, 100)) and len(read) == 100


def test_an_error_of_a_reader_ends_the_readers() -> None:
    before = threading.active_count()

    def reader(number: int) -> float:
        return 1 / (5 - number)

    with pytest.raises(ZeroDivisionError):
        list(each_of(range(1000), reader))
    assert threading.active_count() == before
