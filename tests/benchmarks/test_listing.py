"""The benchmark of listings, over a few pages."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.listing import PAGE, bucket_of, name_of
from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import s3_objects
from medfocus.pipeline.data.storage import locate


def test_all_pages_are_listed_in_order_and_the_target_is_met() -> None:
    command = [sys.executable, "-m", "benchmarks.listing", "--objects", str(3 * PAGE + 1)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    rows = [line.split("|")[1:3] for line in ended.stdout.splitlines()[2:4]]
    assert rows == [[" walk ", f" {3 * PAGE + 1} "], [" files ", f" {3 * PAGE + 1} "]]
    assert ended.stdout.endswith("met\n") and ended.stderr == ""


def test_a_walk_asks_for_a_page_when_it_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    pages: list[int] = []
    with bucket_of(5 * PAGE) as url:
        place = locate("s3://archive/images", StorageSection(s3_endpoint=url))
        entries = place.walk(lambda name: False)
        real = s3_objects.S3Objects._pages

        def counted(*call: object):
            for page in real(*call):
                pages.append(len(page["Contents"]))
                yield page

        monkeypatch.setattr(s3_objects.S3Objects, "_pages", counted)
        first = [next(entries).name for _ in range(PAGE + 1)]
        assert first == [name_of(number) for number in range(PAGE + 1)] and pages == [PAGE, PAGE]
