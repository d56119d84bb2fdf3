"""Isolation: a row that makes a stage raise an error, or kills its worker, costs no other row."""
