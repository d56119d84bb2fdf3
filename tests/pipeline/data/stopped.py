"""Storage whose process ends once so many changes have been made."""

from medfocus.pipeline.data.storage import Location


class Stopped(Exception):
    """The process is gone."""


class StoppedLocation(Location):
    """A place whose writes and deletions end the process once ``left`` of them have been made."""

    left = 0

    @classmethod
    def after(cls, steps: int, place: Location) -> "StoppedLocation":
        """A place that is stopped after so many changes."""
        cls.left = steps
        return cls(place.store, place.path, place.uri)

    def _count(self) -> None:
        if StoppedLocation.left == 0:
            raise Stopped
        StoppedLocation.left -= 1

    def __truediv__(self, name: str) -> Location:
        below = super().__truediv__(name)
        return StoppedLocation(below.store, below.path, below.uri)

    def write(self, content: bytes) -> None:
        self._count()
        super().write(content)

    def create(self, content: bytes) -> bool:
        self._count()
        return super().create(content)

    def replace(self, content: bytes, version: str) -> bool:
        self._count()
        return super().replace(content, version)

    def delete(self) -> None:
        self._count()
        super().delete()
