"""Where it runs: connecting to Ray, and the resource plan that sizes tasks and actor pools."""
