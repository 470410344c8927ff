"""``python -m trimtab.cli``: the command line for a process that has the package alone, such as a job's."""

from trimtab.cli import main

if __name__ == "__main__":
    main()
