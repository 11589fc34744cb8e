"""A run where other packages ask which model to take; each module needs the package that it is for."""
