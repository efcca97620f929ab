"""Typed YAML in, finished runs out: the wiring between the libraries below."""
