"""Where it runs: the connection to Ray, its environment, and the resource plan that sizes tasks and actor pools."""
