"""The command line: one module a verb."""

RUN = "orderscope.run"  # key of click's context under which a command notes the run it works on
