"""The demo: speech of our own making, so that the whole pipeline runs where no corpus can be
downloaded.
"""
