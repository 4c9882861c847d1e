"""Curricula with networks of their own. Their modules load without torch, which is imported when one of them is built."""
