"""Images a second: the models alone, the pipeline around them, and other ways to do the same."""
