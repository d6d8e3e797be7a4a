"""Tests of the protocol's own description."""
