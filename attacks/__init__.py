"""Attacks that training and its evaluation use."""
