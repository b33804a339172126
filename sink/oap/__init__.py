"""Feeds a SkyWalking OAP with what it would get from agents of its own; best effort by design."""
