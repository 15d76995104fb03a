"""`python -m keepsight`."""

from keepsight.cli import main

if __name__ == "__main__":
    main()
