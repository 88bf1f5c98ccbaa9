def report(rows, folder):
    pass
