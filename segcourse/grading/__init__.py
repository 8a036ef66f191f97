"""The grader: a folder of submissions that nobody trusts goes in, scores and feedback come out.

    command.py    the command line: verify, grade, selftest
    submissions   whose notebooks are where; reads them without trusting a name or a link
    pool          judges in processes of their own
    judge         pytest runs the hidden tests of an exercise; each call is a question to
    ----------------------------------------------------------------------------- the sandbox
    supervisor    keeps torch loaded, and forks for each exercise of each student
    worker        a student's process: loads the function and calls it
    notebook      finds the function in the student's notebooks
    seccomp       system calls that are refused
    -----------------------------------------------------------------------------
    sandbox       starts bubblewrap or a container
    wire, pipes   how the two sides talk: JSON and raw arrays, never a pickle
    report        scores.csv, feedback as Markdown and HTML

Students' code is never run above the first line. It sees the arguments of one call at a time, and
answers with arrays; inputs, expected values, comparison and points stay above.
"""
