"""Attacks on train.py: kills, signals, damaged files, full disks, odd names, and what not.

Every attack yields a `Case`: what was done and whether it was held. Held means that the run ends
with the same bits as one that nothing happened to, or that one line says what is wrong, with the
exit status that README tells, and nothing that was good is lost.

    python -m tests.faults              all of it, an hour on two cores; writes validation/faults.md
    python -m tests.faults --only kills signals

tests/test_faults.py runs a sample.
"""
