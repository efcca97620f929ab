"""How building blocks declare themselves and are put together to methods."""
