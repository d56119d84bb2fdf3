"""How the rows were chosen that a model did not learn from, which is said with every figure of them."""

from dataclasses import dataclass
from typing import Literal

How = Literal["by patient", "by neighbours", "by image"]


@dataclass(frozen=True)
class HeldOut:
    """How rows were held out, which is said with every figure of held-out rows.

    Args:
        how: ``by patient``, every row has a ``patient_id``; ``by neighbours``, some have none, and near-duplicates
            were kept together; ``by image``, some have none, and too few images were there to tell what a
            near-duplicate is.
        rows: in all.
        rows_without_patient: of these, how many have no ``patient_id``.
        groups: sets of rows that were kept together.
        near_duplicates_apart: pairs of near-duplicates that were not, since too few groups would have been left.
    """

    how: How
    rows: int
    rows_without_patient: int
    groups: int
    near_duplicates_apart: int = 0

    @property
    def sentence(self) -> str:
        """What is known and what was done, in one line."""
        if self.how == "by patient":
            return f"held out by patient: {self.rows} rows of {self.groups} patients, none on both sides"
        whole = self.rows_without_patient == self.rows
        unknown = "no patient_id" if whole else f"no patient_id for {self.rows_without_patient} of {self.rows} rows"
        if self.how == "by image":
            done = "there are too few images to tell near-duplicates"
        else:
            apart = f", all but {self.near_duplicates_apart} pairs" if self.near_duplicates_apart else ""
            done = f"near-duplicates were kept together{apart} ({self.rows} rows in {self.groups} groups)"
        return (
            f"{unknown}: images of one patient may be on both sides, held-out figures are likely optimistic; {done};"
            " give patient_id to pack for figures by patient"
        )
