"""Sharded tables (phi_old, phi_new, features), their initialisation, and the user means G(U(v))."""
