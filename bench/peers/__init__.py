"""Peers that need more than a call into torch. Importing them never fails."""
