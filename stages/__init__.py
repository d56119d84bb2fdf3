"""What happens to a batch: callables from a dict of arrays to a dict of arrays.

A stage loads its model in the constructor and runs in a bare Python process: nothing here knows of Ray,
MLflow or storage. Importing any stage first makes torchvision importable beside a CPU build of torch.
"""

from stages import torchvision_ops as torchvision_ops
