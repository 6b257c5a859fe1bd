"""The command line: composes the layers below; imports neither Textual nor torch until a command needs them."""

from ossconsole.cli.app import main

__all__ = ["main"]
