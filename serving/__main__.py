"""`python -m serving` is `ferry`."""

from serving.cli import app

app(prog_name="ferry")
