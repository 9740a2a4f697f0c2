"""What every test shares: a property holds or not, however long the machine takes to say so."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
