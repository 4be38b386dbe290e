"""`python -m flexseq.bench`."""

from flexseq.bench.cli import main

if __name__ == "__main__":
    main()
