"""Stages: callables that take a batch (a dict of arrays) and return a batch.

A stage receives its model in the constructor and runs in a plain Python process: no module here imports Ray, MLflow or
a storage client. The order is ``decode``, ``segment``, ``embed`` and, to score, ``classify``; no stage calls another.
The docstring of each stage names the resources it uses, and the columns it takes, adds and removes. In them N is the
number of rows of the batch. A row that fails keeps its place in the batch and carries its error (``stages.batch``).

Modules that import sam2, open_clip or timm import ``stages.torchvision_ops`` first.
"""
