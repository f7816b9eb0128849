"""`python -m transform`: the same as the console script."""

from energy_model._house import main

if __name__ == "__main__":
    main()
