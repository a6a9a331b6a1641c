"""The command line: one module a verb."""

RUN = "orderscope.run"  # under this key of click's context a verb tells which run it works on
