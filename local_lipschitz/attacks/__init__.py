"""Attacks: points of another class, found; knows no bound."""
