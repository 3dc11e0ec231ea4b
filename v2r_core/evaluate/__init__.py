"""How good an encoder or a reward is, measured."""
