"""``python -m dlf.cli`` runs the command ``dlf``."""

from dlf.cli import main

if __name__ == "__main__":
    main()
