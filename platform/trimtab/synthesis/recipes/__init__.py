"""The recipes of ``trimtab synthesize``: what a ranked group is made of. Plain functions of plain values."""
