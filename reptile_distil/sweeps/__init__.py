"""Searches for better values of a configuration's keys, by rows that are held out of training, never by dev."""
