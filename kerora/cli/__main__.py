"""`python -m kerora.cli`, the command `kerora` where its script is not on the path."""

from kerora.cli.main import app

app(prog_name="kerora")
