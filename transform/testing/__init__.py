"""What a method must keep, as a test that anyone can run on their own."""

from transform.testing.contract import check_method

__all__ = ["check_method"]
