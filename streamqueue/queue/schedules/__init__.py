"""Schedules as programs and people see and change them."""
