"""``python -m dlf.lm_eval`` runs the harness' command ``lm_eval`` with dlf among its models."""

from dlf.lm_eval import main

if __name__ == "__main__":
    main()
