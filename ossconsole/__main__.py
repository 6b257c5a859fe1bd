"""`python -m ossconsole`, which is also how torchrun and the sandbox process start it."""

from ossconsole.cli import main

if __name__ == "__main__":
    main()
