"""Looks at the installation, the directories and the stores, and says what to do.

It opens no store itself, and loads neither torch nor a model (the devices are asked in a process of
their own).
"""
