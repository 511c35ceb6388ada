"""What a process of a pool does that is to be killed; a module of its own, because the process imports it."""

import os


def die(*_):
    os._exit(9)
