"""How the files of each format are read: in a graph that no file can fail, or by Pillow."""
