"""`python -m avpt`."""

from avpt.cli import app

app()
