"""Time and memory that a listing of many objects on S3 takes.

Usage: ``python -m benchmarks.listing [--objects 1000000]``

A server in a process of its own answers ``ListObjectsV2`` over HTTP with keys that it makes up. Each row is a listing
in a process of its own: ``walk``, which yields the objects as their pages arrive, and ``files``, which returns all
names. Prints a table of the seconds and of the peak memory of the process, with all libraries. The target is less than
300 MiB. The last line says ``met`` or ``MISSED``; the exit code is 1 where it is missed.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.queues import Queue
from urllib.parse import parse_qs, urlsplit

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import Location, locate

MAX_MIB = 300
# Objects of a page, as of AWS.
PAGE = 1000


class Keys(BaseHTTPRequestHandler):
    """Answers every GET with a page of the listing of a bucket with ``count`` objects."""

    protocol_version = "HTTP/1.1"
    count = 0

    def do_GET(self) -> None:
        """Answer with the keys after the continuation token, which is their number."""
        query = parse_qs(urlsplit(self.path).query)
        first = int(query.get("continuation-token", ["0"])[0])
        last = min(first + int(query.get("max-keys", [PAGE])[0]), self.count)
        prefix = query.get("prefix", [""])[0]
        more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < self.count else ""
        objects = "".join(
            f"<Contents><Key>{prefix}{name_of(number)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{number:032x}&quot;</ETag><Size>{number}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for number in range(first, last)
        )
        truncated = str(bool(more)).lower()
        body = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{objects}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def name_of(number: int) -> str:
    """Name of an object of the listing."""
    return f"site-{number // 100_000:03d}/study-{number // 100:08d}/image-{number:010d}.png"


def serve(count: int, ports: "Queue[int]") -> None:
    """Serve the listing of a bucket, until the process is ended."""
    Keys.count = count
    server = ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    ports.put(server.server_address[1])
    server.serve_forever()


@contextmanager
def bucket_of(count: int) -> Iterator[str]:
    """Run the server of a bucket with so many objects; yields its URL."""
    context = get_context("spawn")
    ports = context.Queue()
    process = context.Process(target=serve, args=(count, ports), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ports.get(timeout=60)}"
    finally:
        process.terminate()
        process.join()


def walked(place: Location) -> int:
    """Number of objects that ``walk`` yields."""
    return sum(1 for _ in place.walk(lambda name: False))


def named(place: Location) -> int:
    """Number of names that ``files`` returns."""
    return len(place.files(".png", recursive=True))


def measure(count_objects: Callable[[Location], int], url: str) -> tuple[int, float, int]:
    """Objects, seconds, and peak resident memory of this process in MiB."""
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_EC2_METADATA_DISABLED="true")
    started = time.monotonic()
    objects = count_objects(locate("s3://archive/images", StorageSection(s3_endpoint=url)))
    seconds = time.monotonic() - started
    return objects, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main() -> int:
    """Print the table; 1 where the target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.listing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=1_000_000, help="objects of the bucket (default: 1000000)")
    count = parser.parse_args().objects
    met = True
    print("| listing | objects | seconds | MiB of the process |\n|---|---|---|---|")
    with bucket_of(count) as url:
        for title, function in (("walk", walked), ("files", named)):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                objects, seconds, mebibytes = process.submit(measure, function, url).result()
            print(f"| {title} | {objects} | {seconds:.1f} | {mebibytes} |", flush=True)
            met &= mebibytes < MAX_MIB and objects == count
    print(f"\nunder {MAX_MIB} MiB: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
