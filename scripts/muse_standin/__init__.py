"""The parts of `make_muse_standin.py`: books to chapters, chapters to a corpus."""
