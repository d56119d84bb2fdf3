"""The settings of the region finder; their defaults are in the configuration (``pipeline.config``)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SegmentSettings:
    """Settings of ``stages.segment.Segment``.

    Attributes:
        points_per_side: points of the prompt grid along each side; the grid has this number squared.
        regions: most regions whose union is the focus mask.
        min_area: smallest share of the image that a region may cover, 0..1.
        max_area: largest share of the image that a region may cover, 0..1.
        prior_area: centre of the area prior, a share of the image, 0..1.
        prior_spread: standard deviation of the area prior, in natural logarithms of the share.
        min_stability: stability (the IoU of a mask at logits +1 and -1) below which a candidate is dropped.
        max_overlap: IoU with a better candidate above which a candidate is dropped.
        min_relative_score: share of the best candidate's score below which a candidate is dropped.
        margin: logits below 0 down to which the surroundings of a region belong to the focus mask.
        batch_size: images in one pass of the encoder; None takes a number that suits the device.
        prompts_per_pass: points times images in one pass of the decoder; None takes a number that suits the device.
    """

    points_per_side: int
    regions: int
    min_area: float
    max_area: float
    prior_area: float
    prior_spread: float
    min_stability: float
    max_overlap: float
    min_relative_score: float
    margin: float
    batch_size: int | None
    prompts_per_pass: int | None
