"""`python -m geraft`: the same as the command geraft."""

from geraft.cli import main

main(prog_name="geraft")
