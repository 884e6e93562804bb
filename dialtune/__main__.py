"""`python -m dialtune` is `dialtune`."""

from dialtune.cli.app import main

if __name__ == "__main__":
    main()
