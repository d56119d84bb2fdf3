"""What happens to a batch: callables from a dict of arrays to a dict of arrays.

A stage gets its model in the constructor and runs in a bare Python process: nothing here knows of Ray, MLflow or
storage. Modules that bring in sam2, open_clip or timm import ``stages.torchvision_ops`` first.
"""
