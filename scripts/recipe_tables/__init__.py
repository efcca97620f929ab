"""The tables behind the recipes in the package; `make_recipes.py` writes the files."""
