"""What every test shares: a property holds or not, however long the machine takes to say so."""

import signal

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Of a program that a shell runs in the background Ctrl-C is ignored, and so in all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
