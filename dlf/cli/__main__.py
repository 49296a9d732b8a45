"""``python -m dlf.cli``, which is the command ``dlf``."""

from dlf.cli import main

if __name__ == "__main__":
    main()
