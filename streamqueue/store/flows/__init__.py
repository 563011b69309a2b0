"""What a store does, written once for both: claims, time passing, setting up.

A flow is a generator. It yields what is to be sent (see ``steps``), is sent the answer, and has
thrown into it what went wrong; a store drives it, and adds nothing but how it sends and waits.
They are here and not in ``protocol``, which knows no clock: a flow measures how long an answer took
and remembers what was refused and what was given up (``state``).
"""
