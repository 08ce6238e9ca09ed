"""Rows of the table, one module an op; modules that several share begin with an underscore."""
