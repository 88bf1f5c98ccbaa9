"""x."""
def check_independent(whole, single, n, loss_reduction): pass
