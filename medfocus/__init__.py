"""MedFocus: archives of medical images to scored, explained results.

This package is the one name that the code is imported by: ``medfocus.pipeline``, ``medfocus.stages``,
``medfocus.cluster`` and ``medfocus.starter`` are links to the folders of these names at the root of the repository.
Ray puts the folder that a command is called in before the installed packages of its workers, and many data projects
have a folder ``pipeline/`` or ``stages/``: under bare names theirs would be imported in place of ours.
"""
