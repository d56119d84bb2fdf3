"""Settings of Ray Data that are in force for a block of code, and no longer."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.data import DataContext


@contextmanager
def scoped_data_context() -> Iterator[DataContext]:
    """Put a copy of Ray Data's context in force; yields the copy, whose changes end with the block.

    A dataset copies the context when it is created, so it keeps the settings of the block when it is executed later.
    """
    context = DataContext.get_current().copy()
    with DataContext.current(context):
        yield context


@contextmanager
def rows_in_order() -> Iterator[None]:
    """Let Ray Data keep rows in order, for datasets that are created and trainings that are started in the block.

    Ray Train copies the context for its workers, and for their parts of the datasets, when training starts.
    """
    with scoped_data_context() as context:
        context.execution_options.preserve_order = True
        yield
