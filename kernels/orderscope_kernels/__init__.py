"""The hot loops of orderscope: a kernel and its plain-torch reference of the same signature, side by side.

This package imports nothing of `orderscope`.
"""
