print("aligned"); doit()
