"""What is raised where no rule computes a call."""

__all__ = ["NoRule"]


class NoRule(NotImplementedError):
    """No rule computes this call."""
