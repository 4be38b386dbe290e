"""The command line: `python -m flexseq.bench TASK` trains a network on a task and leaves its results in a folder."""
