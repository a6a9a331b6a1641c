"""The hot loops of orderscope: a kernel and its plain-torch reference of the same signature, side by side; and the
optimizers that they step with.

This package imports nothing of `orderscope`.
"""
