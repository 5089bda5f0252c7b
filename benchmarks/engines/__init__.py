"""Servers of several ranks, and servers that read pictures."""
