"""The analytic memory and time model: what each turn will take, why, and what would fit."""
