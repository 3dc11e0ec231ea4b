"""Rewards for data that is already recorded."""
