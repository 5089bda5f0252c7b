"""Servers with dummy weights, the requests that they are sent, and what clients see."""
