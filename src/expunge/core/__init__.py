"""Registry, errors, fingerprints and file I/O: standard library, numpy and pydantic only."""
