"""Labelled structures, from files to what training and evaluation are given; nothing here imports torch."""
