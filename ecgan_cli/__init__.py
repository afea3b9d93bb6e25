"""The ``ecgan`` command."""
