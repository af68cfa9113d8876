"""Modules and how they act."""
