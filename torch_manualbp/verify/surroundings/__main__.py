"""``python -m torch_manualbp.verify.surroundings``: print the matrix of the layers."""

from torch_manualbp.verify.surroundings import surroundings_matrix

matrix = surroundings_matrix()
print(matrix)
raise SystemExit(not matrix.ok)
