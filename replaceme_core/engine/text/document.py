"""What calibration text consists of."""

Conversation = list[dict[str, str]]
"""Turns with `role` and `content`."""
Document = str | Conversation
