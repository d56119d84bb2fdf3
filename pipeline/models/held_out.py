"""How the held-out rows of a model were chosen; every held-out figure is reported with it."""

from dataclasses import dataclass
from typing import Literal

HoldOutMethod = Literal["by patient", "by neighbours", "by image"]


@dataclass(frozen=True)
class HeldOut:
    """How rows were divided into groups that are held out together.

    Args:
        how: ``by patient``: every row has a ``patient_id``. ``by neighbours``: some rows have none, and near-duplicates
            were kept together. ``by image``: some rows have none, and there were too few images to recognise
            near-duplicates.
        rows: number of labelled rows.
        rows_without_patient: number of rows without a ``patient_id``.
        groups: number of sets of rows that were kept together.
        near_duplicates_apart: pairs of near-duplicates that were not kept together, lest too few groups remain.
    """

    how: HoldOutMethod
    rows: int
    rows_without_patient: int
    groups: int
    near_duplicates_apart: int = 0

    @property
    def sentence(self) -> str:
        """One line for the log and the registry: what is known of the patients, and how rows were grouped."""
        if self.how == "by patient":
            return f"held out by patient: {self.rows} rows of {self.groups} patients, none on both sides"
        none_known = self.rows_without_patient == self.rows
        extent = "" if none_known else f" for {self.rows_without_patient} of {self.rows} rows"
        if self.how == "by image":
            grouping = "there are too few images to tell near-duplicates"
        else:
            exceptions = f", all but {self.near_duplicates_apart} pairs" if self.near_duplicates_apart else ""
            grouping = f"near-duplicates were kept together{exceptions} ({self.rows} rows in {self.groups} groups)"
        return (
            f"no patient_id{extent}: images of one patient may be on both sides, held-out figures are likely"
            f" optimistic; {grouping}; give patient_id to pack for figures by patient"
        )
