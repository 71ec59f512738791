"""Answering requests: one process is one replica, for one or several models."""
