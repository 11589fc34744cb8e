"""What a subject's figures say: a module for each part of a diagnosis."""
