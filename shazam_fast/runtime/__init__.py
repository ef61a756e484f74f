"""Durable files, resumable jobs, devices, progress."""
