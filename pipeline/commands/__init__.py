"""One module a command; each is thin: it checks the call, begins a run and calls the other rooms."""
