"""The implementation of ``tools/torture.py``: campaigns of trials that try to break the commands.

    config.py, drive.py, trials.py, report.py     flags; time and workers; the journal of trials; the table
    warm.py, child.py, verdict.py                 a command in a forked child, how it ended, and whether that is right
    material.py, damage.py, words.py              small runs and data; damaged files; random words of command lines
    campaigns/                                    one module each: what it tries, and what would be right
    commands.py, saved.py                         what is compared: the results of a command, the ends of chains of runs
    processes.py, two_ranks.py                    real processes under torchrun, which are killed

What is tried is a pure function of the seed, the campaign and the number of the trial, so that one can be repeated.
"""
